//! Running `pollux` and reading what it says.

use std::process::{ExitStatus, Output};

use serde::de::DeserializeOwned;

use crate::views::Complaint;

/// The documented exit codes that stories expect.
pub mod exit {
    /// Done.
    pub const OK: i32 = 0;
    /// The request itself is wrong.
    pub const USAGE: i32 = 2;
    /// No such node, VM or operation.
    pub const NOT_FOUND: i32 = 3;
    /// The object's state does not allow it.
    pub const CONFLICT: i32 = 4;
    /// No daemon, no leader or no quorum.
    pub const UNAVAILABLE: i32 = 5;
    /// The operation ran and failed.
    pub const FAILED: i32 = 7;
    /// The operation was cancelled.
    pub const CANCELLED: i32 = 8;
    /// Waited in vain.
    pub const TIMED_OUT: i32 = 9;
    /// Compared, and replicas differ.
    pub const DIFFERS: i32 = 10;
}

/// How one run of `pollux` ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The command line, for messages.
    pub asked: String,
    /// The exit code; `-1`: ended by a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    pub(crate) fn new(asked: String, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { asked, code: code_of(output.status), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Expects this exit code.
    ///
    /// # Panics
    /// If it is another.
    #[must_use]
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, expected, "exit code of `{}`:\n{}{}", self.asked, self.out, self.err);
        self
    }

    /// Expects success, and reads the JSON.
    ///
    /// # Panics
    /// If it failed, or said something else.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.code, exit::OK, "exit code of `{}`:\n{}{}", self.asked, self.out, self.err);
        self.value()
    }

    /// Reads the JSON, whatever the exit code.
    ///
    /// # Panics
    /// If it is not that.
    #[track_caller]
    pub fn value<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.out).unwrap_or_else(|error| {
            panic!("`{}` printed no such JSON ({error}):\n{}{}", self.asked, self.out, self.err)
        })
    }

    /// The JSON of a success; what was said instead otherwise.
    ///
    /// # Errors
    /// What was said.
    pub fn try_json<T: DeserializeOwned>(&self) -> Result<T, String> {
        let said = || format!("`{}` ended with {}: {}{}", self.asked, self.code, self.out, self.err);
        if self.code == exit::OK { serde_json::from_str(&self.out).map_err(|_| said()) } else { Err(said()) }
    }

    /// What it complained about.
    ///
    /// # Panics
    /// If it did not, or if the complaint names another exit code than the process ended with.
    #[track_caller]
    pub fn complaint(&self) -> Complaint {
        let found = self.err.lines().rev().find_map(|line| serde_json::from_str::<Complaint>(line).ok());
        let complaint =
            found.unwrap_or_else(|| panic!("`{}` ended with {} and no complaint: {}", self.asked, self.code, self.err));
        assert_eq!(complaint.exit_code, self.code, "`{}` says one exit code and ends with another", self.asked);
        complaint
    }

    /// Expects this exit code and a complaint that names all of `named`.
    ///
    /// # Panics
    /// If it is not so.
    #[track_caller]
    pub fn refused(&self, expected: i32, named: &[&str]) {
        assert_eq!(self.code, expected, "exit code of `{}`:\n{}{}", self.asked, self.out, self.err);
        let complaint = self.complaint();
        for name in named {
            assert!(complaint.error.contains(name), "`{}` does not name {name:?}: {complaint:?}", self.asked);
        }
    }
}

pub(crate) fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}
