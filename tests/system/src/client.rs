//! A client outside the guest, in the namespace where clients are.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use pollux_lab::Host;
use pollux_probe::guest::{Guest, Hello, Ran};

use crate::World;

/// Where the guest serves its line protocol.
pub const TCP_PORT: u16 = 7000;
/// Longest wait for a guest to boot; it takes about 10 s without hardware help on a busy machine.
const BOOT: Duration = Duration::from_secs(90);
/// Longest wait for one answer. Longer than any blackout and shorter than a test may hang.
const ANSWER: Duration = Duration::from_secs(40);

/// Longest wait for what a guest says before it is gone.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The guest of one VM, as clients see it.
#[derive(Clone, Debug)]
pub struct Client {
    lan: Host,
    address: SocketAddr,
}

impl Client {
    /// The guest at this address.
    ///
    /// # Panics
    /// If there is no place where clients are.
    #[track_caller]
    #[must_use]
    pub fn at(world: &World, address: Ipv4Addr) -> Self {
        Self::new(world.host("lan"), address)
    }

    pub(crate) fn new(lan: Host, address: Ipv4Addr) -> Self {
        Self { lan, address: (address, TCP_PORT).into() }
    }

    /// Waits until the guest answers, and returns which boot it is.
    ///
    /// # Panics
    /// If it does not within the time a boot takes.
    #[track_caller]
    pub fn boot(&self) -> String {
        self.hello().boot
    }

    /// Waits until the guest answers, and returns what it says of itself.
    ///
    /// # Panics
    /// If it does not within the time a boot takes.
    #[track_caller]
    pub fn hello(&self) -> Hello {
        self.hello_within(BOOT)
    }

    #[track_caller]
    pub(crate) fn hello_within(&self, limit: Duration) -> Hello {
        let hello = self.within(|| Guest::wait(self.address, limit));
        hello.unwrap_or_else(|error| panic!("no guest answers at {}: {error}", self.address))
    }

    /// Nobody answers at this moment.
    ///
    /// # Panics
    /// If the place where clients are is gone.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.within(|| Guest::wait(self.address, Duration::ZERO)).is_err()
    }

    /// One request on a connection of its own, and its answer. Waits for a guest that does not answer yet.
    ///
    /// # Panics
    /// If the guest refuses it or does not answer.
    #[track_caller]
    pub fn ask(&self, request: &str) -> String {
        let answer = self.within(|| {
            Guest::wait(self.address, ANSWER)?;
            Guest::connect(self.address, ANSWER)?.ask(request)
        });
        let answer = answer.unwrap_or_else(|error| panic!("{} did not answer {request}: {error}", self.address));
        assert!(!answer.starts_with("ERR"), "{} refused {request}: {answer}", self.address);
        answer
    }

    /// A shell in the guest carries a command out, as root; waits at most `limit` for its end.
    ///
    /// # Panics
    /// If the guest does not say what came of it.
    #[track_caller]
    pub fn run(&self, command: &str, limit: Duration) -> Ran {
        let ran = self.within(|| {
            Guest::wait(self.address, ANSWER)?;
            Guest::connect(self.address, limit)?.run(command)
        });
        ran.unwrap_or_else(|error| panic!("{} did not say what came of {command}: {error}", self.address))
    }

    /// One request whose answer may not come, for the guest is to be gone after it.
    ///
    /// # Panics
    /// If the guest cannot be reached.
    #[track_caller]
    pub fn tell(&self, request: &str) {
        let told = self.within(|| {
            Guest::wait(self.address, ANSWER)?;
            let mut guest = Guest::connect(self.address, LAST_WORDS)?;
            // Its answer may be cut off with it.
            let _ = guest.ask(request);
            Ok(())
        });
        told.unwrap_or_else(|error| panic!("{} could not be told {request}: {error}", self.address));
    }

    /// The guest reads back its whole buffer and finds every word as it must be.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn check_memory(&self) {
        let answer = self.ask("CHECK");
        assert!(answer.starts_with("OK "), "the guest's memory is not what it wrote: {answer}");
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.lan.within(work).expect("clients have a place of their own")
    }
}
