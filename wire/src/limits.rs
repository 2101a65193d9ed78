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
/// Relay addresses in an invite, or in a peer's own settings.
pub const RELAYS: usize = 3;
/// Relays of one hub. A node measures all of them, and keeps links to two.
pub const HUB_RELAYS: usize = 16;
/// Entries in a list of tools, shells or GPUs that a node reports.
pub const CAPABILITY_ENTRIES: usize = 64;
/// Tasks in an inventory. More than a node can run, less than a control frame holds.
pub const INVENTORY_ENTRIES: usize = 512;
/// Rules in one policy list.
pub const POLICY_RULES: usize = 256;
/// A policy, encoded. It travels in a control frame, beside an inventory.
pub const POLICY_BYTES: usize = 24 * 1024;
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
/// Largest frame on a workspace stream: a packed batch, or a long drift report.
pub const WORKSPACE_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// Changes in one batch. More go in several: others get a turn, and a frame stays small.
pub const BATCH_OPS: usize = 2_048;
/// A batch before compression. 2,048 changes of ordinary files take about 250 KiB.
pub const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// A path in a workspace. Linux's own limit.
pub const PATH_BYTES: usize = 4_096;
/// Paths that a node is asked to look at in one request.
pub const RESCAN_PATHS: usize = 100;
/// A file's or folder's name. The limit of all common file systems.
pub const PATH_COMPONENT_BYTES: usize = 255;
/// Folders below one another in a workspace.
pub const PATH_DEPTH: usize = 128;
/// Plain bytes in one chunk. Larger ones compress little better and make small edits dearer.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// A chunk as it travels: header, tag, and bytes that did not compress.
pub const SEALED_CHUNK_BYTES: usize = CHUNK_BYTES + 1024;
/// Chunks named in one request.
pub const CHUNK_REQUEST: usize = 8_192;
/// The first frame of a chunk stream, or an answer that lists chunks: a full request, and what is around it.
pub const CHUNK_OPEN_BYTES: usize = CHUNK_REQUEST * 32 + 1024;
/// Chunk streams that a node may have open on its link. A transfer takes one or two.
pub const CHUNK_STREAMS: u32 = 8;
/// Chunk streams that a relay may have open on its link to a hub: it asks in small groups, for many nodes.
pub const RELAY_CHUNK_STREAMS: u32 = 128;
/// Spans in one entry or page.
pub const SPANS: usize = 512;
/// The largest file of a workspace.
pub const FILE_BYTES: u64 = 16 * 1024 * 1024 * 1024;
/// Entries of one workspace.
pub const WORKSPACE_ENTRIES: usize = 1_000_000;
/// Workspaces that a node names when it registers. Those that are gone are forgotten, so the others come up another time.
pub const HELD_WORKSPACES: usize = 512;
/// Sessions in one frame of a link between hub and relay.
pub const LINK_SESSIONS: usize = 2_048;
/// Sessions in one ticket.
pub const TICKET_SESSIONS: usize = 256;
/// One message of a stream that carries packets where UDP does not get through: a batch of them, each after its length. As much as one segmented send.
pub const STREAM_MESSAGE_BYTES: usize = 64 * 1024;
/// A packet in such a message. QUIC endpoints here send no larger ones.
pub const STREAM_PACKET_BYTES: usize = LARGEST_PACKET_BYTES as usize;

/// The largest QUIC packets that are ever sent, in bytes. Ten of them, which quinn hands to the kernel at a time, are just below the most that it takes.
pub const LARGEST_PACKET_BYTES: u16 = 6_400;
/// Packets that wait for a stream to take them. What goes beyond is dropped, as a router would; a quarter of a second at 10 Mbit/s.
pub const STREAM_QUEUE_BYTES: usize = 256 * 1024;
/// What the kernel may hold of a stream besides: together they bound what a receiver that does not read costs, and how long it makes others wait.
pub const STREAM_SOCKET_BYTES: usize = 256 * 1024;
/// What a stream may bring before a link on it is admitted: a handshake and a hello, several times over.
pub const STREAM_BEFORE_ADMISSION_BYTES: usize = 64 * 1024;
/// Addresses at which one end says that the other might reach it directly, and that are tried.
pub const DIRECT_ADDRESSES: usize = 8;
/// Probes of one node that a hub answers in a second. A search for a way sends at most as many in a round.
pub const DIRECT_PINGS_PER_SECOND: u32 = 64;
/// How often a hub sends probes for one node to the addresses that it named: a round of them, again and again for four seconds.
pub const DIRECT_ROUNDS_MS: [u64; 8] = [0, 50, 150, 300, 600, 1_200, 2_200, 3_500];
/// A node that asks for them again sooner than after this time is not heard.
pub const DIRECT_SEARCH_MS: u64 = 4_000;
/// Addresses of one node from which a hub takes packets at a time.
pub const DIRECT_SOURCES: usize = 4;
/// Entries in one list of a frame of the pool: such a frame has at most 20 KiB.
pub const POOL_BATCH: usize = 512;
/// Nodes that one task is offered to at a time. What they do not claim is offered to others.
pub const POOL_OFFERED: usize = 8;
/// Offers that a node keeps. What goes beyond is not looked at; others claim it.
pub const POOL_HELD: usize = 4_096;
/// Tasks that may wait in a hub's pool. Beyond it dispatches are refused.
pub const POOL_WAITING: usize = 65_536;
/// Columns or rows of a terminal.
pub const TERMINAL_CELLS: u32 = 1_000;
/// A shell session's name.
pub const SHELL_NAME_BYTES: usize = 64;
/// What a shell session keeps: its environment, and its folder.
pub const SHELL_STATE_BYTES: usize = ENVIRONMENT_BYTES;
/// Secrets of one task.
pub const TASK_SECRETS: usize = 16;
/// A secret's value. Shorter ones cannot be told from ordinary output, and would make holes in it.
pub const SECRET_LEAST_BYTES: usize = 8;
/// A secret's value. A private key fits several times over.
pub const SECRET_BYTES: usize = 16 * 1024;
/// One browser action as a document: a batch, or a script with its data.
pub const BROWSER_ORDER_BYTES: usize = 256 * 1024;
/// Actions in one batch.
pub const BROWSER_BATCH: usize = 200;
/// An action that says nothing about its time.
pub const BROWSER_ACTION_MS: u64 = 30_000;
/// The longest time that an action may ask for.
pub const BROWSER_LONGEST_MS: u64 = 30 * 60 * 1000;
/// A page as text, unless more is asked for: what an AI reads at once.
pub const BROWSER_SNAPSHOT_BYTES: usize = 8_000;
/// A page as text, whatever is asked for.
pub const BROWSER_LARGEST_SNAPSHOT_BYTES: usize = 256 * 1024;
/// One thing that happened in a browser, as a document.
pub const BROWSER_EVENT_BYTES: usize = 16 * 1024;
/// Of them in one frame, all together: less than a control frame.
pub const BROWSER_EVENTS_BYTES: usize = 48 * 1024;
/// What happened in browsers and has not reached the hub yet. Beyond it the oldest are dropped, and counted.
pub const BROWSER_EVENTS_WAITING: usize = 2_000;
/// What a hub keeps of one session's browsers. Beyond it the oldest are dropped.
pub const BROWSER_EVENTS_KEPT: u64 = 10_000;
