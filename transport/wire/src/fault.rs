//! The numbers of failures that a peer may report, as far as they mean the same to everyone. A service may use numbers of
//! its own from [`SERVICE_FIRST`] on.

/// The service failed in a way that has no number of its own; the text says how.
pub const INTERNAL: u16 = 1;
/// The body could not be decoded.
pub const MALFORMED: u16 = 2;
/// The peer's role does not allow this call.
pub const ROLE: u16 = 3;
/// The receiver knows no such method or kind of session.
pub const METHOD: u16 = 4;
/// The body is larger than the method allows.
pub const TOO_LARGE: u16 = 5;
/// The connection has as many calls or sessions running as it may have.
pub const BUSY: u16 = 6;
/// The peer is no longer part of the cluster.
pub const NOT_ADMITTED: u16 = 7;
/// The receiver is shutting down.
pub const CLOSING: u16 = 8;
/// The answer would have been larger than the method allows. The call *was* executed.
pub const ANSWER_TOO_LARGE: u16 = 9;

/// Join: no such token was ever issued, or it was withdrawn.
pub const TOKEN_UNKNOWN: u16 = 32;
/// Join: the token's time is over.
pub const TOKEN_EXPIRED: u16 = 33;
/// Join: the token has been used.
pub const TOKEN_USED: u16 = 34;
/// Join: the token was issued for a node of another name.
pub const TOKEN_NAME: u16 = 35;
/// Join: this node cannot admit others now (no quorum, no authority here); ask another one.
pub const ASK_ANOTHER: u16 = 36;
/// Join: the node may have been admitted or not. Asking again with the same token and the same key finds out.
pub const JOIN_UNDECIDED: u16 = 37;

/// The first number that a service may use as it likes.
pub const SERVICE_FIRST: u16 = 256;

/// Whether a join was refused because of its token.
#[must_use]
pub const fn is_bad_token(code: u16) -> bool {
    matches!(code, TOKEN_UNKNOWN | TOKEN_EXPIRED | TOKEN_USED | TOKEN_NAME)
}
