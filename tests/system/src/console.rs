//! A console that a test sits at, through pipes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// A `pollux vm console` that runs. Dropping it detaches.
#[derive(Debug)]
pub struct Console {
    child: Child,
    keys: Option<ChildStdin>,
    said: Arc<Said>,
}

#[derive(Debug, Default)]
struct Said {
    text: Mutex<Text>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    /// What the guest wrote.
    screen: String,
    /// What `pollux` said beside it.
    notes: String,
}

impl Said {
    fn text(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, add: impl FnOnce(&mut Text)) {
        add(&mut self.text());
        self.more.notify_all();
    }
}

impl Console {
    pub(crate) fn attach(mut command: Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("`pollux` can be started");
        let (keys, mut screen) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
        let notes = child.stderr.take().expect("a pipe");
        let said = Arc::new(Said::default());
        let shown = Arc::clone(&said);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                shown.add(|text| text.screen += &String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let noted = Arc::clone(&said);
        thread::spawn(move || {
            for line in BufReader::new(notes).lines().map_while(Result::ok) {
                noted.add(|text| text.notes += &format!("{}\n", line.trim()));
            }
        });
        Self { child, keys, said }
    }

    /// Types.
    ///
    /// # Panics
    /// If the program has ended.
    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        let keys = self.keys.as_mut().expect("standard input is open");
        keys.write_all(text.as_bytes()).and_then(|()| keys.flush()).expect("the console takes what is typed");
    }

    /// Waits until the guest has written this.
    ///
    /// # Panics
    /// If it does not within `limit`.
    #[track_caller]
    pub fn shows(&self, what: &str, limit: Duration) {
        self.until(what, limit, |text| text.screen.contains(what));
    }

    /// Waits until `pollux` has said this beside it.
    ///
    /// # Panics
    /// If it does not within `limit`.
    #[track_caller]
    pub fn notes(&self, what: &str, limit: Duration) {
        self.until(what, limit, |text| text.notes.contains(what));
    }

    /// How often the guest has written this.
    #[must_use]
    pub fn times(&self, what: &str) -> usize {
        self.said.text().screen.matches(what).count()
    }

    #[track_caller]
    fn until(&self, what: &str, limit: Duration, seen: impl Fn(&Text) -> bool) {
        let end = Instant::now() + limit;
        let mut text = self.said.text();
        while !seen(&text) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the console has not said {what:?}, but {:?} and {:?}", text.screen, text.notes);
            text = self.said.more.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the pipe that is typed through, and waits until the program has ended by itself. Returns its exit code.
    ///
    /// # Panics
    /// If it cannot be waited for.
    #[must_use]
    pub fn hang_up(mut self) -> Option<i32> {
        drop(self.keys.take());
        self.child.wait().expect("a child can be waited for").code()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
