//! Panics as findings: what an assertion of the code under test said, told with the seed that led there.
//!
//! tokio keeps a task's panic to itself, so it is taken down where it happens, by a hook; only on threads that run a
//! simulation, and only while they do.

use std::{
    cell::{Cell, RefCell},
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    /// What the first panic said, and where.
    static FOUND: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Plays a run on this thread. A panic anywhere in it, be it of a task that ends alone, is the finding.
///
/// # Errors
/// What it said, or what the run found.
pub(crate) fn watched<T>(play: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    begin();
    let played = panic::catch_unwind(AssertUnwindSafe(play));
    match (end(), played) {
        (Some(panic), _) => Err(panic),
        (None, Ok(played)) => played,
        (None, Err(_)) => Err("a panic without a word".into()),
    }
}

/// A run begins on this thread.
fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !WATCHING.get() {
                return before(info);
            }
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let message = info.payload_as_str().unwrap_or("no words");
            FOUND.with_borrow_mut(|found| {
                found.get_or_insert(format!("a panic at {place}: {message}"));
            });
        }));
    });
    FOUND.set(None);
    WATCHING.set(true);
}

/// Has there been one since the run began?
pub(crate) fn any() -> bool {
    FOUND.with_borrow(Option::is_some)
}

/// The run is over: the first panic, if there was one.
fn end() -> Option<String> {
    WATCHING.set(false);
    FOUND.take()
}
