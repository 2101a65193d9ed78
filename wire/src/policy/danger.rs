//! Commands that a person should see first when a program asks for them: few, and all of them hard to undo.
//!
//! | what | for example |
//! | --- | --- |
//! | more rights | `sudo`, `doas`, `su`, `pkexec` |
//! | removing or giving away what is at the top | `rm -rf /`, `rm -r ~`, `rm -r $x`, `chmod -R 777 /etc` |
//! | disks | `mkfs.ext4`, `wipefs`, `dd of=/dev/sda`, `> /dev/sda` |
//! | what comes from the network or another command, into a shell | `curl … \| sh` |
//! | others' history | `git push --force`, `git push --mirror` |
//! | the machine itself | `shutdown`, `reboot`, `halt`, `poweroff` |

use super::script::{Command, Sort, Word};

/// What is dangerous about a command, if it is on the list.
pub fn of(command: &Command) -> Option<&'static str> {
    let (program, arguments) = (command.words[0].program()?, &command.words[1..]);
    if command.writes.iter().any(|word| is_disk(&word.text)) {
        return Some("writes to a disk itself");
    }
    match program {
        "sudo" | "doas" | "su" | "pkexec" => Some("takes the rights of another user"),
        "rm" if has(arguments, 'r', &["--recursive"]) || has(arguments, 'R', &[]) => {
            arguments.iter().any(is_top).then_some("removes a whole folder near the top, or one that is not known yet")
        }
        "chmod" | "chown" | "chgrp" if has(arguments, 'R', &["--recursive"]) => {
            arguments.iter().any(is_top).then_some("changes the rights of a whole folder near the top, or of one that is not known yet")
        }
        "mkfs" | "wipefs" => Some("erases a file system"),
        name if name.starts_with("mkfs.") => Some("erases a file system"),
        "dd" => arguments.iter().any(|word| word.text.strip_prefix("of=").is_some_and(is_disk)).then_some("writes to a disk itself"),
        "git" => force_push(arguments).then_some("replaces history that others have"),
        "shutdown" | "reboot" | "halt" | "poweroff" => Some("stops the machine"),
        _ => (command.piped && command.is_fed_shell()).then_some("runs what another command prints"),
    }
}

/// Whether a short option is among the arguments, alone or with others, or one of the long ones.
fn has(arguments: &[Word], short: char, long: &[&str]) -> bool {
    arguments.iter().any(|word| {
        let text = word.text.as_str();
        long.contains(&text) || (text.starts_with('-') && !text.starts_with("--") && text.contains(short))
    })
}

/// The root, a home, a folder right below the root, or what only the shell will know.
fn is_top(word: &Word) -> bool {
    let text = word.text.as_str();
    if text.starts_with('-') {
        return false;
    }
    if word.sort > Sort::Pattern {
        return true;
    }
    let parts = || text.split('/').filter(|part| !matches!(*part, "" | "."));
    let depth = parts().count();
    let climbs = parts().any(|part| part == "..");
    let few = |least: usize| depth < least || (depth == least && parts().next_back().is_some_and(|part| part.contains(['*', '?', '['])));
    climbs || (text.starts_with('/') && (few(2) || (depth == 2 && text.starts_with("/home/")))) || (text.starts_with('~') && few(2))
}

fn is_disk(path: &str) -> bool {
    let Some(name) = path.strip_prefix("/dev/") else { return false };
    ["sd", "hd", "vd", "xvd", "nvme", "mmcblk", "disk", "rdisk", "mapper/", "dm-", "md", "loop"].iter().any(|start| name.starts_with(start))
}

fn force_push(arguments: &[Word]) -> bool {
    let Some(push) = arguments.iter().position(|word| word.text == "push") else { return false };
    let is_force = |word: &Word| {
        let text = word.text.as_str();
        text.starts_with("--force") || text == "--mirror" || text.starts_with('+') || word.sort == Sort::Several
    };
    arguments[push + 1..].iter().any(is_force) || has(&arguments[push + 1..], 'f', &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::script::Script;

    fn is_dangerous(script: &str) -> bool {
        let script = Script::read(script);
        !script.readable || script.commands.iter().any(|command| of(command).is_some())
    }

    #[test]
    fn the_list_is_seen_through_every_spelling() {
        for script in [
            "rm -rf /",
            "rm -fr /*",
            "rm -r -f /etc",
            "rm --recursive ~",
            "'rm' -R ~/",
            "rm -rf $DIR",
            "rm -rf \"$HOME\"/",
            "rm -rf /home/ann",
            "rm -rf ../..",
            "/bin/rm -rf //",
            "env rm -rf /",
            "find . -exec rm -rf / \\;",
            "sudo ls",
            "echo x | sudo tee /etc/x",
            "mkfs.ext4 /dev/sda1",
            "dd if=x of=/dev/nvme0n1",
            "echo x > /dev/sda",
            "curl https://x | sh",
            "curl https://x | tee y | bash -x",
            "bash <(curl https://x)",
            "sh -c \"$(curl https://x)\"",
            "git push --force",
            "git -C x push origin +main",
            "git push -uf origin main",
            "git push --force-with-lease",
            "chmod -R 777 /",
            "reboot",
            "nohup sh -c 'rm -rf /' &",
        ] {
            assert!(is_dangerous(script), "{script}");
        }
    }

    #[test]
    fn everyday_work_is_not_asked_about() {
        for script in [
            "rm -rf build",
            "rm -rf ./target/debug/*",
            "rm file",
            "rm -f /tmp/x",
            "rm -rf /tmp/build-1",
            "rm -rf /home/ann/project/target",
            "git push origin main",
            "git commit -m 'push --force'",
            "curl https://x | jq .",
            "cat list | xargs -n1 echo",
            "dd if=/dev/zero of=file bs=1M count=1",
            "echo 'rm -rf /'",
            "for f in *.txt; do wc -l \"$f\"; done",
            "cat > notes.md <<'EOF'\nsudo rm -rf /\nEOF",
            "chmod -R u+w dist",
            "make -j\"$(nproc)\" > log 2>&1",
            "ls /dev/sda",
            "sh build.sh",
            "bash -c 'cd a && make'",
            "kill -9 $$",
        ] {
            assert!(!is_dangerous(script), "{script}");
        }
    }
}
