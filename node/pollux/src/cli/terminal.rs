//! The terminal while a guest's console has it: every key goes to the guest, and whatever ends the program, the terminal is as
//! it was before.

use std::{
    io::{self, IsTerminal, Read},
    panic,
    sync::{Mutex, Once, PoisonError},
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

/// Bytes read from standard input at once.
const CHUNK_BYTES: usize = 1024;
/// Chunks that wait to be taken; the keyboard, or the pipe, waits then.
const CHUNKS_MAX: usize = 16;

/// How the terminal was. One process has one, and the panic hook must find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal in raw mode, for as long as this lives.
pub(crate) struct Raw(());

impl Raw {
    /// Puts the terminal on standard input into raw mode; `None` if there is none.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        static HOOK: Once = Once::new();
        // Before the panic is reported: its lines would climb down like stairs.
        HOOK.call_once(|| {
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                report(info);
            }));
        });
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that has gone away needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// What comes in on standard input, until it ends.
///
/// A thread of its own reads it: a read from a terminal cannot be called off, and the runtime would wait for one of its own
/// threads. This one ends with the process.
pub(crate) fn keys() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (post, keys) = mpsc::channel(CHUNKS_MAX);
    std::thread::Builder::new().name("keyboard".to_owned()).spawn(move || {
        let mut buffer = [0; CHUNK_BYTES];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(count @ 1..) => {
                    if post.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
            }
        }
    })?;
    Ok(keys)
}

/// The key that detaches: a control character, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Escape(Option<u8>);

impl Escape {
    /// No key detaches.
    pub(crate) const NONE: Self = Self(None);

    /// Reads `^]`, `ctrl-]` or `none`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let key = text.strip_prefix('^').or_else(|| text.strip_prefix("ctrl-")).or_else(|| text.strip_prefix("Ctrl-"));
        match key.map(|key| key.to_ascii_uppercase()).as_deref().map(str::as_bytes) {
            // What the Control key makes of `@` to `_`.
            Some([key @ b'@'..=b'_']) => Ok(Self(Some(key & 0x1f))),
            _ => Err("write it as ^] or ctrl-a, or `none`".to_owned()),
        }
    }

    /// As it is written on a keyboard; `None` if there is none.
    pub(crate) fn name(self) -> Option<String> {
        self.0.map(|byte| format!("Ctrl-{}", char::from(byte | 0x40)))
    }

    /// What of `typed` is for the guest: all, or what comes before the key (`true`).
    pub(crate) fn cut(self, typed: &[u8]) -> (&[u8], bool) {
        match self.0.and_then(|escape| typed.iter().position(|byte| *byte == escape)) {
            Some(at) => (&typed[..at], true),
            None => (typed, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_key_is_written_as_people_write_it() {
        let names = ["^]", "ctrl-a", "Ctrl-A", "^^", "^@"].map(|text| Escape::parse(text).unwrap().name().unwrap());
        assert_eq!(names, ["Ctrl-]", "Ctrl-A", "Ctrl-A", "Ctrl-^", "Ctrl-@"]);
        assert_eq!(Escape::parse("none").unwrap().name(), None);
        for nonsense in ["]", "^", "^]]", "ctrl-1", "alt-a", ""] {
            assert!(Escape::parse(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn what_stands_before_the_detach_key_still_reaches_the_guest() {
        let escape = Escape::parse("^]").unwrap();
        assert_eq!(escape.cut(b"ls\r\x1dmore"), (b"ls\r".as_slice(), true));
        assert_eq!(escape.cut(b"ls\r"), (b"ls\r".as_slice(), false));
        assert_eq!(Escape::parse("none").unwrap().cut(b"\x1d"), (b"\x1d".as_slice(), false));
    }
}
