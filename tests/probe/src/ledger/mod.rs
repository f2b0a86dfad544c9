//! TCP connections that live as long as the measurement, and a ledger of everything that was acknowledged on them.
//!
//! One thread per connection sends `INC`, `PUT` and `GET` in turn at a steady rate, each of keys of its own, and enters every
//! answer into the one [`book`]. A connection that breaks is counted and set up again. At the end every thread reads all that it
//! has written once more.

mod book;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub use book::LedgerReport;

use self::book::Book;
use crate::{
    guest::{Guest, not_understood},
    instrument::Instrument,
};

/// Keys each connection writes in turn. They are all read back in the end.
const KEYS_PER_CONNECTION: u64 = 256;
/// After so many rounds a connection asks again which boot it talks to.
const HELLO_EVERY: u64 = 32;
/// Pause between two attempts to set a broken connection up again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What to do, and how hard.
#[derive(Clone, Copy, Debug)]
pub struct LedgerOptions {
    /// The guest's TCP port.
    pub target: SocketAddr,
    /// Connections at the same time.
    pub connections: usize,
    /// Requests a second on each connection, at least 1.
    pub requests_per_second: u32,
    /// Longest wait for an answer; a connection without one in this time is given up and counts as reset.
    pub patience: Duration,
}

/// The running instrument. Dropping it stops its threads, too.
#[derive(Debug)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Ledger {
    /// Starts the connections. They try until the guest answers.
    pub fn start(options: LedgerOptions) -> Self {
        let book = Arc::new(Mutex::new(Book::new(options.connections)));
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..options.connections)
            .map(|number| {
                let mut connection = Connection {
                    options,
                    number,
                    life: 0,
                    book: Arc::clone(&book),
                    stop: Arc::clone(&stop),
                    keys: Vec::new(),
                };
                thread::spawn(move || connection.run())
            })
            .collect();
        Self { book, stop, threads }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in a thread has been told on standard error; what it entered until then is still the report.
            let _ = thread.join();
        }
    }
}

impl Instrument for Ledger {
    type Report = LedgerReport;

    fn mark(&self, name: &str) -> LedgerReport {
        lock(&self.book).close_window(name, Instant::now())
    }

    /// Reads everything back first; that takes at most twice the patience where the guest is silent.
    fn finish(mut self) -> LedgerReport {
        self.stop();
        let mut book = lock(&self.book);
        book.close_window("rest", Instant::now());
        book.total()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread's connection, over all its lives.
struct Connection {
    options: LedgerOptions,
    number: usize,
    /// How many connections came before this one. Keys bear it, so that a late request of a dead connection harms no one.
    life: u64,
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
    /// Every key written and acknowledged, also by earlier lives.
    keys: Vec<String>,
}

impl Connection {
    fn run(&mut self) {
        let mut live = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some(guest) = live.as_mut() else {
                live = self.connect();
                if live.is_none() {
                    thread::sleep(RECONNECT_PAUSE);
                }
                continue;
            };
            if self.work(guest).is_err() {
                self.lost();
                live = None;
            }
        }
        self.read_all_back(live);
    }

    fn connect(&mut self) -> Option<Guest> {
        lock(&self.book).wait(self.number, Instant::now());
        let mut guest = Guest::connect(self.options.target, self.options.patience).ok()?;
        let hello = guest.hello().ok()?;
        lock(&self.book).connected(self.life > 0, hello.boot);
        Some(guest)
    }

    fn lost(&mut self) {
        self.life += 1;
        lock(&self.book).disconnected();
    }

    /// Sends requests until told to stop or until the connection breaks.
    fn work(&mut self, guest: &mut Guest) -> io::Result<()> {
        let pause = Duration::from_secs(1) / self.options.requests_per_second.max(1);
        let mut due = Instant::now();
        for round in 0_u64.. {
            for step in 0..3 {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                match step {
                    0 if round % HELLO_EVERY == 0 => self.hello(guest)?,
                    0 => self.increment(guest)?,
                    1 => self.put(guest, round)?,
                    _ => self.read_one_back(guest, round)?,
                }
                due = (due + pause).max(Instant::now());
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(())
    }

    /// One request and its answer, with the time between them entered.
    fn ask(&self, guest: &mut Guest, request: &str) -> io::Result<String> {
        lock(&self.book).wait(self.number, Instant::now());
        let answer = guest.ask(request)?;
        lock(&self.book).answer(self.number, Instant::now());
        Ok(answer)
    }

    fn hello(&self, guest: &mut Guest) -> io::Result<()> {
        lock(&self.book).wait(self.number, Instant::now());
        let hello = guest.hello()?;
        let mut book = lock(&self.book);
        book.answer(self.number, Instant::now());
        book.booted(hello.boot);
        Ok(())
    }

    fn increment(&self, guest: &mut Guest) -> io::Result<()> {
        let sent = lock(&self.book).counter_sent();
        let answer = self.ask(guest, "INC")?;
        let number = answer.parse().map_err(|_| not_understood("INC", &answer))?;
        lock(&self.book).incremented(sent, number);
        Ok(())
    }

    fn put(&mut self, guest: &mut Guest, round: u64) -> io::Result<()> {
        let key = format!("c{}.{}.{}", self.number, self.life, round % KEYS_PER_CONNECTION);
        let value = format!("v{}.{round}", self.life);
        let sent = lock(&self.book).put_sent();
        let answer = match self.ask(guest, &format!("PUT {key} {value}")) {
            Ok(answer) => answer,
            Err(error) => {
                lock(&self.book).put_unknown(&key);
                return Err(error);
            }
        };
        let mut book = lock(&self.book);
        if answer.starts_with("ERR ") {
            book.refused();
            return Ok(());
        }
        let version = answer.strip_prefix("OK ").and_then(|version| version.parse().ok());
        let Some(version) = version else {
            book.put_unknown(&key);
            return Err(not_understood("PUT", &answer));
        };
        if round < KEYS_PER_CONNECTION {
            self.keys.push(key.clone());
        }
        book.put(sent, version, &key, value);
        Ok(())
    }

    /// Reads the key that was written longest ago, just before it is written again.
    fn read_one_back(&self, guest: &mut Guest, round: u64) -> io::Result<()> {
        let count = self.keys.len() as u64;
        if count == 0 {
            return Ok(());
        }
        // Below the number of keys, which is a usize.
        let index = usize::try_from((round + 1) % count).unwrap_or_default();
        self.read_back(guest, &self.keys[index])
    }

    fn read_back(&self, guest: &mut Guest, key: &str) -> io::Result<()> {
        let answer = self.ask(guest, &format!("GET {key}"))?;
        let value = (!answer.starts_with("ERR ")).then_some(answer.as_str());
        lock(&self.book).value_read(key, value);
        Ok(())
    }

    /// The last reading: every key, and the counter.
    fn read_all_back(&mut self, live: Option<Guest>) {
        let deadline = Instant::now() + self.options.patience;
        let mut live = live;
        let mut verified = 0;
        loop {
            if live.is_none() {
                live = self.connect();
            }
            if let Some(guest) = live.as_mut() {
                match self.read_from(guest, &mut verified) {
                    Ok(()) => return,
                    Err(_) => {
                        self.lost();
                        live = None;
                    }
                }
            }
            if Instant::now() >= deadline {
                let mut book = lock(&self.book);
                let left = self.keys[verified..].iter().filter(|key| book.knows(key)).count();
                book.unverified(left as u64);
                return;
            }
            thread::sleep(RECONNECT_PAUSE);
        }
    }

    fn read_from(&self, guest: &mut Guest, verified: &mut usize) -> io::Result<()> {
        let sent = lock(&self.book).counter_sent();
        let answer = self.ask(guest, "GET")?;
        let number = answer.parse().map_err(|_| not_understood("GET", &answer))?;
        lock(&self.book).counter_read(sent, number);
        while let Some(key) = self.keys.get(*verified) {
            self.read_back(guest, key)?;
            *verified += 1;
        }
        Ok(())
    }
}
