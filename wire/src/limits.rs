//! Every bound on what a stranger can make us hold or do, with its reason.

/// Largest frame on a control stream or a link. The largest legitimate one is a registration with a full inventory.
pub const CONTROL_FRAME_BYTES: usize = 64 * 1024;
/// Largest frame on a task stream: a task request with its script, or one output chunk.
pub const TASK_FRAME_BYTES: usize = 1024 * 1024;
/// Largest piece of output in one frame. Bigger pieces save little and hold other streams up longer.
pub const OUTPUT_CHUNK_BYTES: usize = 128 * 1024;
/// Output that a peer may have sent but that the hub has not stored yet. Above it the process is held back.
pub const OUTPUT_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Input that a hub may have sent but that the process has not read yet (`InputAck`). What goes beyond is dropped, unacknowledged.
pub const INPUT_WINDOW_BYTES: usize = 1024 * 1024;
/// Output kept from the beginning of a stream when a task prints more than is kept.
pub const OUTPUT_HEAD_BYTES: u64 = 32 * 1024 * 1024;
/// Output kept from the end of a stream when a task prints more than is kept.
pub const OUTPUT_TAIL_BYTES: u64 = 32 * 1024 * 1024;
/// A script, or all arguments together. Linux refuses a single argument above 128 KiB anyway; scripts go by file.
pub const COMMAND_BYTES: usize = 256 * 1024;
/// Environment changes of one task.
pub const ENVIRONMENT_BYTES: usize = 64 * 1024;
/// Arguments of one task.
pub const ARGUMENTS: usize = 4096;
/// A name, label or reason that a person or a node supplies.
pub const NAME_BYTES: usize = 128;
/// A longer text from a node, such as a refusal's reason or a CPU model.
pub const TEXT_BYTES: usize = 512;
/// Relay addresses in an invite or a configuration.
pub const RELAYS: usize = 3;
/// Entries in a list of tools, shells or GPUs that a node reports.
pub const CAPABILITY_ENTRIES: usize = 64;
/// Tasks in an inventory. More than a node can run, less than a control frame holds.
pub const INVENTORY_ENTRIES: usize = 512;
/// Rules in one policy list.
pub const POLICY_RULES: usize = 256;
/// Longest text form of an invite.
pub const INVITE_TEXT_BYTES: usize = 4096;
/// Life of a ticket. Short, because a relay that lost its hub goes on admitting on the strength of it.
pub const TICKET_LIFE_MS: i64 = 5 * 60 * 1000;
/// A task that has not started by then is refused by the node: late work is worse than no work.
pub const START_DEADLINE_MS: i64 = 10 * 60 * 1000;
/// Window of task sequence numbers a node accepts out of order (streams race each other).
pub const SEQUENCE_WINDOW: u64 = 1024;
/// Everything a stranger may take before it has proved who it is.
pub const BEFORE_AUTHENTICATION_MS: u64 = 10_000;
/// Heartbeat of a node.
pub const HEARTBEAT_MS: u64 = 5_000;
/// A node that was silent for this long is shown offline: a heartbeat, a retransmission, and some air.
pub const SILENCE_MS: u64 = 8_500;
