//! What a sandboxed program may use of the machine, and the end of its capabilities.

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities},
};

use super::helper::{Fault, Step as _};

/// Processes and threads of one task. The kernel counts them in the sandbox's own user namespace; for a peer that is root it does not.
const PROCESSES: u64 = 4096;
/// Memory that may not be swapped.
const LOCKED_BYTES: u64 = 8 << 20;

/// Lowers limits; nothing inside can raise them again.
pub(super) fn apply() -> Result<(), Fault> {
    for (resource, limit) in [(Resource::Core, 0), (Resource::Nproc, PROCESSES), (Resource::Memlock, LOCKED_BYTES), (Resource::Rtprio, 0)] {
        let maximum = getrlimit(resource).maximum.map_or(limit, |now| now.min(limit));
        setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) }).step("lower limits")?;
    }
    Ok(())
}

/// This process has no capability any more, and no program that it becomes can get one.
pub(super) fn drop_capabilities() -> Result<(), Fault> {
    for capability in CapabilitySet::all().iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).step("drop capabilities")
}
