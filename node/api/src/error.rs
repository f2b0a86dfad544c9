//! What goes wrong, for people and for scripts: one kind decides the HTTP status, another program's handling and the CLI's exit
//! code.

use serde::{Deserialize, Serialize};

/// A request that did not do what it asked for. Also the JSON body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What happened, to which object, and why.
    pub message: String,
    /// What to do next; empty when there is nothing sensible to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub todo: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong: repeating it will not help.
    Invalid,
    /// The object does not exist.
    NotFound,
    /// The object's state does not allow it, or somebody else's change came first. Nothing changed.
    Conflict,
    /// No quorum, no leader or no daemon. Nothing changed; try again later.
    Unavailable,
    /// The change may or may not have happened. Look before doing it again.
    Unknown,
    /// A defect or a broken host; the daemon's log says more.
    #[serde(other)]
    Internal,
}

impl ErrorKind {
    /// The HTTP status it travels with.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::Unknown => 504,
        }
    }

    /// The kind behind a status whose body was not ours.
    #[must_use]
    pub const fn from_status(status: u16) -> Self {
        match status {
            404 => Self::NotFound,
            409 => Self::Conflict,
            400..=499 => Self::Invalid,
            503 => Self::Unavailable,
            504 => Self::Unknown,
            _ => Self::Internal,
        }
    }
}

impl ApiError {
    /// An error of any kind, without advice.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), todo: String::new() }
    }

    /// The request itself is wrong.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The object does not exist.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// The object's state does not allow it.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// Not now, and nothing changed.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// May or may not have happened.
    #[must_use]
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unknown, message)
    }

    /// A defect or a broken host.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The same with advice.
    #[must_use]
    pub fn todo(mut self, todo: impl Into<String>) -> Self {
        self.todo = todo.into();
        self
    }
}
