//! The kernel's own gate on a TAP (DESIGN, rule 5): it holds also while the daemon sleeps.
//!
//! A process can be stopped between looking at its gate and writing to the TAP, for a minute or a day, and writes when it
//! wakes. So the last word is not the process's. What is written into the TAP passes a chain at the TAP's ingress that drops
//! everything, unless the set `right` holds the interface; and what is in that set expires.
//!
//! ```text
//!   table netdev pollux-px12n0
//!     set asked   questions put to the log lately, each for `time`
//!     set right   the interface itself, for `time`, or nothing
//!     chain       ingress of px12n0: in `right` -> accept, else drop
//!
//!   note(q)     asked += q              before the question leaves
//!   unlock(q)   asked -= q, right += 1  refused when q is not there any more: its answer is too old
//!   keep()      right -= 1, right += 1  refused when right is not there any more: whoever asks has slept
//!   lock()      right -= 1
//! ```
//! Each of them is one transaction of the kernel's. That is the point: nothing is looked up first and done later, so there is
//! no place between the two in which a process could sleep. The clock is the kernel's as well.
//!
//! The kernel's timers stand still while the whole host is suspended. So a question and what it granted are remembered
//! together with how long the host had been suspended by then ([`suspended`]), and end with the next suspension.
//!
//! One [`Fence`] for one TAP, made right after it and dropped right after it; its table is owned by its socket, so the kernel
//! removes it when the daemon ends in whatever way.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::io::Errno;

use crate::{
    awake::{slept, suspended},
    netlink,
    nftables::{Keys, Nftables, Transaction},
    sys,
    tap::Tap,
};

const TABLE_PREFIX: &str = "pollux-";
const RIGHT: &str = "right";
const ASKED: &str = "asked";
const CHAIN: &str = "ingress";
/// Numbers of the sets within the transaction that makes them.
const RIGHT_ID: u32 = 1;
const ASKED_ID: u32 = 2;
/// A table of this name is still there for a moment when its daemon was killed just now: tried this often, ...
const TRIES_MAX: u32 = 50;
/// ... with this pause between.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The kernel's gate on one TAP. Locked when made.
#[derive(Debug)]
pub struct Fence {
    kernel: Nftables,
    table: String,
    interface: u32,
    time: Duration,
    clock: fn() -> Duration,
    /// By that clock, when the log was last asked.
    asked: Mutex<Duration>,
}

/// The fence did not do what was asked of it. It is then as it was.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The time has run out: the process slept, or the log's answer was too long on its way.
    #[error("the time in which '{tap}' may send has run out; the log has to be asked again")]
    Expired {
        /// The TAP.
        tap: String,
    },
    /// The kernel has no nf_tables, or not at a device's ingress.
    #[error(
        "this kernel cannot fence the TAP '{tap}': nf_tables at a device's ingress is missing (CONFIG_NF_TABLES_NETDEV, Linux \
         6.3 or newer); `modprobe nf_tables`, or boot a kernel that has it"
    )]
    NotSupported {
        /// The TAP.
        tap: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process may not.
    #[error("fencing the TAP '{tap}' needs CAP_NET_ADMIN in this network namespace; run as root")]
    NotPermitted {
        /// The TAP.
        tap: String,
    },
    /// Anything else the kernel refused.
    #[error("{what} failed for the fence of '{tap}'")]
    Kernel {
        /// The TAP.
        tap: String,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Fence {
    /// Puts a locked fence on `tap`, in the calling thread's network namespace, which must be the TAP's. What is granted later
    /// is granted for `time`.
    ///
    /// # Errors
    /// See [`FenceError`]; there is no fence then, and nothing should be written to the TAP.
    pub async fn raise(tap: &Tap, time: Duration) -> Result<Self, FenceError> {
        Self::raise_by(tap, time, suspended).await
    }

    /// The same by another clock than [`suspended`].
    ///
    /// # Errors
    /// As [`Fence::raise`].
    pub async fn raise_by(tap: &Tap, time: Duration, clock: fn() -> Duration) -> Result<Self, FenceError> {
        Self::on(tap.name(), time, clock).await
    }

    async fn on(name: &str, time: Duration, clock: fn() -> Duration) -> Result<Self, FenceError> {
        let failed = |what| move |source| FenceError::Kernel { tap: name.to_owned(), what, source };
        let link = netlink::link(name).and_then(|link| link.ok_or_else(|| io::ErrorKind::NotFound.into()));
        let interface = link.map_err(failed("finding the interface"))?.index;
        let kernel = Nftables::open().map_err(|source| refine(name, source))?;
        let table = format!("{TABLE_PREFIX}{name}");
        let mut tries = 0;
        loop {
            let made = kernel.commit(
                Transaction::about(&table)
                    .table()
                    .set(RIGHT, RIGHT_ID, Keys::Interfaces)
                    .set(ASKED, ASKED_ID, Keys::Marks)
                    .ingress(CHAIN, name)
                    .accept_from(CHAIN, RIGHT, RIGHT_ID)
                    .count(CHAIN),
            );
            tries += 1;
            match made {
                Ok(()) => {
                    let asked = Mutex::new(clock());
                    return Ok(Self { kernel, table, interface, time, clock, asked });
                }
                Err(error) if is_taken(&error) && tries < TRIES_MAX => tokio::time::sleep(TRY_AGAIN).await,
                Err(error) => return Err(refine(name, error)),
            }
        }
    }

    /// Tries on a TAP of its own whether this host can do it.
    ///
    /// # Errors
    /// See [`FenceError`]: no VM with a network card can run here.
    pub async fn preflight() -> Result<(), FenceError> {
        let name = format!("pxf{}", std::process::id());
        let made = sys::make_tap(&name);
        let tap = made.map_err(|source| FenceError::Kernel { tap: name.clone(), what: "making a TAP", source })?;
        let fence = Self::on(&name, Duration::from_secs(1), suspended).await?;
        fence.note(1)?;
        fence.unlock(1)?;
        fence.keep()?;
        // In this order, as always.
        drop((tap, fence));
        Ok(())
    }

    /// The log is about to be asked `question`, a number that is never used twice. To be called *before*.
    ///
    /// # Errors
    /// When the kernel refuses: the answer will then unlock nothing.
    pub fn note(&self, question: u32) -> Result<(), FenceError> {
        let now = (self.clock)();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if slept(*asked, now) {
            // Whatever was asked or granted before the suspension is over.
            self.commit("locking", self.about().flush(ASKED).flush(RIGHT))?;
            *asked = now;
        }
        drop(asked);
        self.commit("noting a question", self.about().clear(ASKED, question).add(ASKED, question, self.time))
    }

    /// The log has answered `question`: this TAP's guest may send. Holds for the fence's time, and must be kept.
    ///
    /// # Errors
    /// [`FenceError::Expired`] when the question was put longer ago than the fence's time, or unlocked it already.
    pub fn unlock(&self, question: u32) -> Result<(), FenceError> {
        self.was_awake()?;
        let granted = self.about().take(ASKED, question).clear(RIGHT, self.interface);
        self.commit("unlocking", granted.add(RIGHT, self.interface, self.time))
    }

    /// Grants what is granted for another time from now.
    ///
    /// # Errors
    /// [`FenceError::Expired`] when nothing is granted any more: only [`Fence::unlock`] grants it again.
    pub fn keep(&self) -> Result<(), FenceError> {
        self.was_awake()?;
        let kept = self.about().take(RIGHT, self.interface).add(RIGHT, self.interface, self.time);
        self.commit("keeping it unlocked", kept)
    }

    /// Nothing leaves from here on.
    ///
    /// # Errors
    /// When the kernel refuses: what is granted then ends by itself.
    pub fn lock(&self) -> Result<(), FenceError> {
        self.commit("locking", self.about().clear(RIGHT, self.interface))
    }

    /// The host was not suspended since the log was last asked; otherwise nothing leaves any more.
    fn was_awake(&self) -> Result<(), FenceError> {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if slept(asked, (self.clock)()) {
            self.lock()?;
            return Err(FenceError::Expired { tap: self.tap() });
        }
        Ok(())
    }

    fn about(&self) -> Transaction<'_> {
        Transaction::about(&self.table)
    }

    fn tap(&self) -> String {
        self.table.strip_prefix(TABLE_PREFIX).unwrap_or(&self.table).to_owned()
    }

    fn commit(&self, what: &'static str, transaction: Transaction<'_>) -> Result<(), FenceError> {
        self.kernel.commit(transaction).map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => FenceError::Expired { tap: self.tap() },
            _ => FenceError::Kernel { tap: self.tap(), what, source },
        })
    }
}

/// Somebody has a table of that name.
fn is_taken(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::EXIST | Errno::PERM | Errno::BUSY))
}

fn refine(name: &str, source: io::Error) -> FenceError {
    let tap = name.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::PERM | Errno::ACCESS) => FenceError::NotPermitted { tap },
        Some(Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::INVAL | Errno::NOENT | Errno::AFNOSUPPORT) => {
            FenceError::NotSupported { tap, source }
        }
        _ => FenceError::Kernel { tap, what: "making it", source },
    }
}
