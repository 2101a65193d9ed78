//! Schema versions: stores move forward on start, one step at a time, after a backup.
