//! The second wall: Landlock rules over the same files. Should somebody get past the mounts, what lies outside the new root is still out of reach.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, Scope, make_bitflags,
};

use super::{helper::Fault, root, spec::Spec};

/// Below this version of Landlock, truncating and renaming are not covered.
const NEEDED: ABI = ABI::V3;

const DEVICES: [&str; 8] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/pts", "/dev/ptmx"];

/// Everything may be read and executed that the root holds; written only what is the task's.
pub(super) fn restrict(spec: &Spec) -> Result<(), Fault> {
    let told = |error: &dyn std::error::Error| Fault::new(format!("cannot enforce Landlock rules: {error}"));
    let mut ruleset = ruleset().map_err(|error| told(&error))?;
    for (at, access) in rules(spec) {
        let file = PathFd::new(&at).map_err(|error| told(&error))?;
        let access = if Path::new(&at).is_dir() { access } else { access & AccessFs::from_file(ABI::V5) };
        ruleset = ruleset.add_rule(PathBeneath::new(file, access)).map_err(|error| told(&error))?;
    }
    ruleset.restrict_self().map(drop).map_err(|error| told(&error))
}

fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(NEEDED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?
        .create()
}

fn rules(spec: &Spec) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let read = AccessFs::from_read(NEEDED);
    let devices = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
    let own = AccessFs::from_all(ABI::V5) & !make_bitflags!(AccessFs::{MakeChar | MakeBlock | IoctlDev});
    let workspace = PathBuf::from(OsStr::from_bytes(&spec.workspace));
    let own = ["/tmp", "/dev/shm", root::HOME].map(PathBuf::from).into_iter().chain([workspace]).map(|at| (at, own));
    let devices = DEVICES.iter().map(|at| (PathBuf::from(at), devices));
    [(PathBuf::from("/"), read)].into_iter().chain(own).chain(devices).collect()
}
