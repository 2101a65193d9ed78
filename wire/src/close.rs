//! Why a connection is closed: application error codes of QUIC, the same on links and end to end.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// A reason to close a connection.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CloseCode {
            $($(#[$doc])* $name = $code,)*
        }

        impl CloseCode {
            /// The code of this number.
            pub fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Stable text for logs, the API and the close frame.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    /// The side that closes is done, in good order.
    Done = 0, "done";
    /// The other side does not speak the protocol.
    Protocol = 1, "protocol_error";
    /// Authentication took too long.
    TooSlow = 2, "too_slow";
    /// Not admitted; the reason was sent before.
    Refused = 3, "refused";
    /// The node was revoked or removed.
    Revoked = 4, "revoked";
    /// The ticket ran out and was not renewed.
    TicketExpired = 5, "ticket_expired";
    /// The same key connected again; the newer connection stays.
    Superseded = 6, "superseded";
    /// The program stops.
    ShuttingDown = 7, "shutting_down";
    /// A limit was passed.
    LimitExceeded = 8, "limit_exceeded";
    /// The other side stopped answering.
    Silent = 9, "silent";
}

impl CloseCode {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }
}
