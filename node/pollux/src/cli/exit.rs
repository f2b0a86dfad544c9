//! How the command line ends: one exit code per kind of failure, so that a script can tell them apart.

use std::fmt::Write as _;

use pollux_api::{ApiError, ErrorKind};

/// Every exit code there is. The table in `pollux help exit-codes` is made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Ok = 0,
    Internal = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    Unavailable = 5,
    Unknown = 6,
    Failed = 7,
    Cancelled = 8,
    TimedOut = 9,
    Differs = 10,
    Interrupted = 130,
}

impl Exit {
    const ALL: [Self; 12] = [
        Self::Ok,
        Self::Internal,
        Self::Usage,
        Self::NotFound,
        Self::Conflict,
        Self::Unavailable,
        Self::Unknown,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
        Self::Differs,
        Self::Interrupted,
    ];

    /// The number the process ends with.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done, or accepted where the verb does not wait",
            Self::Internal => "a defect or a broken host; the daemon's log says more",
            Self::Usage => "the request itself is wrong: flags, names, a file",
            Self::NotFound => "no such node, VM, pool, volume or operation",
            Self::Conflict => "refused: the object's state does not allow it; nothing changed",
            Self::Unavailable => "no daemon, no leader or no quorum; nothing changed, try again later",
            Self::Unknown => {
                "the change may or may not have happened: look (vm show, volume show, op list) before asking again"
            }
            Self::Failed => "the operation ran and failed; everything is as it was before it",
            Self::Cancelled => "the operation was cancelled; everything is as it was before it",
            Self::TimedOut => "waited in vain: the request stands and may still come true",
            Self::Differs => "compared, and replicas differ: what was found is on standard output",
            Self::Interrupted => "interrupted with Ctrl-C: what was asked for goes on",
        }
    }

    /// All codes and what they mean.
    pub(crate) fn all() -> impl Iterator<Item = (u8, &'static str)> {
        Self::ALL.iter().map(|exit| (exit.code(), exit.meaning()))
    }

    /// The same, one a line.
    pub(crate) fn table() -> String {
        Self::all().fold(String::new(), |mut text, (code, meaning)| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{code:>5}  {meaning}");
            text
        })
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::Usage,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::Unknown => Self::Unknown,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

/// A verb that did not do what it was asked: how to end, what to say, what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) todo: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), todo: String::new() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn todo(mut self, todo: impl Into<String>) -> Self {
        self.todo = todo.into();
        self
    }

    /// An error with all it was caused by, in one line.
    pub(crate) fn from_error(exit: Exit, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their cause in their own words.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        Self::new(exit, message)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { exit: error.kind.into(), message: error.message, todo: error.todo }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_listed_once() {
        insta::assert_snapshot!(Exit::table(), @r"
            0  done, or accepted where the verb does not wait
            1  a defect or a broken host; the daemon's log says more
            2  the request itself is wrong: flags, names, a file
            3  no such node, VM, pool, volume or operation
            4  refused: the object's state does not allow it; nothing changed
            5  no daemon, no leader or no quorum; nothing changed, try again later
            6  the change may or may not have happened: look (vm show, volume show, op list) before asking again
            7  the operation ran and failed; everything is as it was before it
            8  the operation was cancelled; everything is as it was before it
            9  waited in vain: the request stands and may still come true
           10  compared, and replicas differ: what was found is on standard output
          130  interrupted with Ctrl-C: what was asked for goes on
        ");
    }

    #[test]
    fn every_kind_of_api_error_has_its_own_status_and_exit_code() {
        let kinds = [
            ErrorKind::Invalid,
            ErrorKind::NotFound,
            ErrorKind::Conflict,
            ErrorKind::Unavailable,
            ErrorKind::Unknown,
            ErrorKind::Internal,
        ];
        let codes: Vec<(u16, u8)> = kinds.iter().map(|&kind| (kind.status(), Exit::from(kind).code())).collect();
        assert_eq!(codes, [(400, 2), (404, 3), (409, 4), (503, 5), (504, 6), (500, 1)]);
        for kind in kinds {
            assert_eq!(ErrorKind::from_status(kind.status()), kind);
        }
    }

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("disk full");
        let error = crate::api::server::ServeError::Io { doing: "listen on", path: "/x".into(), source: inner };
        assert_eq!(Failure::from_error(Exit::Internal, &error).message, "cannot listen on /x: disk full");
    }
}
