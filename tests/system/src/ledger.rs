//! A ledger outside of what a guest's PostgreSQL committed: every number that it acknowledged is written down here, and has to be there
//! afterwards, whatever was done to the guest meanwhile.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use postgres::{Config, NoTls, error::SqlState};

use crate::{client::Client, waiting::until};

/// Clients at the same time, each on a connection of its own.
const WRITERS: i64 = 4;
/// Numbers of one writer.
const OF_ONE: i64 = 1 << 32;
/// Longest wait for a connection, and for the guest to hear anything on one.
const CONNECT: Duration = Duration::from_secs(10);
const SILENT: Duration = Duration::from_secs(120);
/// Pause before a connection is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Commits that are waited for when the workload is to be seen going on.
const SOME: usize = 20;

/// What was written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// The server has said that these are committed.
    pub acknowledged: BTreeSet<i64>,
    /// A connection broke before it said anything of these: they may be there or not.
    pub unknown: BTreeSet<i64>,
    /// What it refused, which it never should.
    pub refused: Vec<String>,
}

/// Clients that commit, one transaction after the other, until they are told to end.
#[derive(Debug)]
pub struct Ledger {
    book: Arc<Book>,
    writers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Book {
    over: AtomicBool,
    entries: Mutex<Entries>,
}

impl Book {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Makes the table in the guest, and starts.
    ///
    /// # Panics
    /// If PostgreSQL does not answer.
    #[track_caller]
    #[must_use]
    pub fn start(client: &Client) -> Self {
        let made = client.within(|| {
            let mut server = connect(client.ip()).map_err(io::Error::other)?;
            server.batch_execute("CREATE TABLE ledger (entry bigint PRIMARY KEY)").map_err(io::Error::other)
        });
        made.unwrap_or_else(|error| panic!("the ledger's table cannot be made: {error}"));
        let book = Arc::new(Book::default());
        let write = |writer: i64| {
            let (book, client) = (Arc::clone(&book), client.clone());
            thread::spawn(move || {
                let written = client.within(|| {
                    write_down(&client, writer * OF_ONE, &book);
                    Ok(())
                });
                // The place where clients are is gone: so is the story.
                drop(written);
            })
        };
        let writers = (0..WRITERS).map(write).collect();
        Self { book, writers }
    }

    /// How many commits were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.book.entries().acknowledged.len()
    }

    /// Waits until some more commits are acknowledged.
    ///
    /// # Panics
    /// If they are not within `limit`, or one was refused.
    #[track_caller]
    pub fn goes_on(&self, limit: Duration) {
        let before = self.acknowledged();
        until("PostgreSQL to commit", limit, || {
            let entries = self.book.entries();
            assert_eq!(entries.refused, Vec::<String>::new(), "PostgreSQL refused");
            let now = entries.acknowledged.len();
            if now >= before + SOME { Ok(()) } else { Err(format!("{before}, then {now}")) }
        });
    }

    /// Ends the clients, and returns what they wrote down.
    ///
    /// # Panics
    /// If one has panicked.
    #[must_use]
    pub fn close(self) -> Entries {
        self.book.over.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().expect("a client of PostgreSQL has ended");
        }
        self.book.entries().clone()
    }
}

impl Entries {
    /// What is in the guest's table is what it acknowledged, and nothing that nobody wrote.
    ///
    /// # Errors
    /// What is lost, what is there that should not, what was refused, or that nothing was ever acknowledged.
    pub fn agree_with(&self, found: &BTreeSet<i64>) -> Result<(), String> {
        let lost: Vec<_> = self.acknowledged.difference(found).collect();
        let strange: Vec<_> =
            found.iter().filter(|it| !self.acknowledged.contains(it) && !self.unknown.contains(it)).collect();
        if self.acknowledged.is_empty() {
            return Err("nothing was acknowledged, so that nothing could be lost".to_owned());
        }
        if lost.is_empty() && strange.is_empty() && self.refused.is_empty() {
            return Ok(());
        }
        Err(format!(
            "of {} acknowledged commits {} are lost ({lost:?}); nobody wrote {strange:?}; refused: {:?}",
            self.acknowledged.len(),
            lost.len(),
            self.refused
        ))
    }

    /// The same of what the guest has now.
    ///
    /// # Panics
    /// If they do not agree, or PostgreSQL does not answer.
    #[track_caller]
    pub fn are_in(&self, client: &Client) {
        let found = client.within(|| {
            let mut server = connect(client.ip()).map_err(io::Error::other)?;
            let rows = server.query("SELECT entry FROM ledger", &[]).map_err(io::Error::other)?;
            Ok(rows.iter().map(|row| row.get(0)).collect::<BTreeSet<i64>>())
        });
        let found = found.unwrap_or_else(|error| panic!("the ledger cannot be read back: {error}"));
        eprintln!(
            "    {} commits acknowledged, {} unknown, {} there",
            self.acknowledged.len(),
            self.unknown.len(),
            found.len()
        );
        if let Err(why) = self.agree_with(&found) {
            panic!("{why}");
        }
    }
}

fn connect(address: IpAddr) -> Result<postgres::Client, postgres::Error> {
    let mut config = Config::new();
    config.user("postgres").dbname("postgres").host(&address.to_string());
    config.connect_timeout(CONNECT).tcp_user_timeout(SILENT);
    config.connect(NoTls)
}

fn write_down(client: &Client, first: i64, book: &Book) {
    let mut next = first;
    while !book.over.load(Ordering::Relaxed) {
        let Ok(mut server) = connect(client.ip()) else {
            thread::sleep(AGAIN);
            continue;
        };
        while !book.over.load(Ordering::Relaxed) {
            let entry = next;
            next += 1;
            let committed = server.batch_execute(&format!("INSERT INTO ledger VALUES ({entry})"));
            let mut entries = book.entries();
            match committed {
                Ok(()) => drop(entries.acknowledged.insert(entry)),
                Err(error) => {
                    entries.unknown.insert(entry);
                    // One that ends or starts says so, and is not to blame.
                    let goes = |state: &SqlState| state.code().starts_with("57P");
                    if error.code().is_some_and(|state| !goes(state)) {
                        entries.refused.push(error.to_string());
                    }
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_lost_and_one_that_nobody_made_are_found_out() {
        let entries = Entries { acknowledged: [1, 2, 3].into(), unknown: [4, 5].into(), refused: Vec::new() };
        assert_eq!(entries.agree_with(&[1, 2, 3].into()), Ok(()));
        assert_eq!(entries.agree_with(&[1, 2, 3, 5].into()), Ok(()), "what nobody knows of may be there");
        assert!(entries.agree_with(&[1, 3, 4].into()).unwrap_err().contains("1 are lost ([2])"));
        assert!(entries.agree_with(&[1, 2, 3, 6].into()).unwrap_err().contains("nobody wrote [6]"));
        let refused = Entries { refused: vec!["could not extend file".into()], ..entries };
        assert!(refused.agree_with(&[1, 2, 3].into()).unwrap_err().contains("could not extend"));
        assert!(Entries::default().agree_with(&BTreeSet::new()).is_err(), "a ledger without entries proves nothing");
    }
}
