//! Says when the web page inside the program is out of date. Debug builds read it from the disk, and have nothing to say.

fn main() {
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    println!("cargo:rerun-if-changed={}", if release { "ui/dist" } else { "build.rs" });
}
