//! Asking a person to say that they mean it: by typing the name of what it is about.

use std::io::{self, BufRead, IsTerminal};

use super::{
    exit::{Exit, Failure},
    output::note,
};

/// Says `what` is about to happen and has `name`, the name of a `kind`, typed. Where nobody can type it, `--yes` is needed,
/// and `once` says when to add it.
pub(super) fn confirm(what: &str, kind: &str, name: &str, once: &str) -> Result<(), Failure> {
    note(what);
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal on which to confirm this").todo(format!("add --yes {once}")));
    }
    note(&format!("Type the {kind}'s name ({name}) to go on:"));
    let mut typed = String::new();
    io::stdin()
        .lock()
        .read_line(&mut typed)
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot read from the terminal: {error}")))?;
    if typed.trim() == name { Ok(()) } else { Err(Failure::usage("that is not its name; nothing was done")) }
}
