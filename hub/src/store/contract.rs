//! What every adapter must do.
