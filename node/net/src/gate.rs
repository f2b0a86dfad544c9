//! The gate: may this frame pass? Pure: no clock, no socket, no task; whoever owns it asks before every single frame.
//!
//! Two numbers meet here. The *stamp* of a frame is the generation under which the QEMU that emitted it runs. The gate's
//! own number is the generation that was committed. A frame passes only when the gate is open and both are equal: a QEMU
//! that kept running after its VM moved on has an old stamp, and one that ran ahead of the commit has a new one.
//!
//! ```text
//!             open(g), g >= highest                      open(g), g > current
//!   closed ---------------------------> open at g -------------------------------> open at g
//!      ^  <--- close(), fence(h), h > g ---'
//!      '--- open(g), g < highest: refused
//! ```
//!
//! The highest generation ever seen is never forgotten, and is raised by what was *committed* only (`open`, `fence`). A
//! frame's stamp does not raise it: a stamp is a claim, and a claim may be refused but must not shut out the owner.

use pollux_wire::id::Generation;

/// May a frame pass? See the module's text. One per port, owned by the port's task.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    open_at: Option<Generation>,
    highest: Generation,
    passed: u64,
    refused: u64,
}

/// What the gate says about one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a frame that was refused must not leave"]
pub enum Verdict {
    /// Let it through, now: the answer holds only until the gate is next changed.
    Pass,
    /// Drop it.
    Refuse(Refusal),
}

/// Why a frame does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The gate is closed.
    #[error("the gate is closed")]
    Closed,
    /// The QEMU that emitted the frame runs under a generation that is over.
    #[error("the frame was emitted under {stamp}, which {committed} has replaced")]
    Stale {
        /// The frame's.
        stamp: Generation,
        /// The gate's.
        committed: Generation,
    },
    /// The QEMU that emitted the frame runs under a generation that is not committed here yet.
    #[error("the frame was emitted under {stamp}, but only {committed} is committed")]
    Ahead {
        /// The frame's.
        stamp: Generation,
        /// The gate's.
        committed: Generation,
    },
}

/// The gate stays as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenRefused {
    /// A higher generation was seen: someone else has, or had, the right to act since.
    #[error("refused to open the gate at {asked}: {highest} has been seen since; read the committed state again")]
    Superseded {
        /// The generation asked for.
        asked: Generation,
        /// The highest one seen.
        highest: Generation,
    },
    /// Generation 0 means that the VM never ran, so nobody owns its frames.
    #[error("refused to open the gate at {}: a VM that never ran has no owner", Generation(0))]
    NeverRan,
}

impl Gate {
    /// A gate that lets nothing through and has seen nothing.
    #[must_use]
    pub const fn closed() -> Self {
        Self { open_at: None, highest: Generation(0), passed: 0, refused: 0 }
    }

    /// Lets frames of the committed `generation` through, and only those. Opening again at the same one changes nothing.
    ///
    /// # Errors
    /// When a higher generation was seen, or `generation` is 0. The gate is then as it was before.
    pub fn open(&mut self, generation: Generation) -> Result<(), OpenRefused> {
        if generation == Generation(0) {
            return Err(OpenRefused::NeverRan);
        }
        if generation < self.highest {
            return Err(OpenRefused::Superseded { asked: generation, highest: self.highest });
        }
        self.highest = generation;
        self.open_at = Some(generation);
        Ok(())
    }

    /// Lets nothing through from here on.
    pub fn close(&mut self) {
        self.open_at = None;
    }

    /// Remembers that `generation` was committed, here or elsewhere. A gate open at a lower one closes.
    pub fn fence(&mut self, generation: Generation) {
        self.highest = self.highest.max(generation);
        if self.open_at.is_some_and(|open_at| open_at < generation) {
            self.close();
        }
    }

    /// Judges one frame by the generation its QEMU runs under, and counts the answer.
    pub fn check(&mut self, stamp: Generation) -> Verdict {
        let verdict = match self.open_at {
            None => Verdict::Refuse(Refusal::Closed),
            Some(committed) if stamp < committed => Verdict::Refuse(Refusal::Stale { stamp, committed }),
            Some(committed) if stamp > committed => Verdict::Refuse(Refusal::Ahead { stamp, committed }),
            Some(_) => Verdict::Pass,
        };
        match verdict {
            Verdict::Pass => self.passed = self.passed.saturating_add(1),
            Verdict::Refuse(_) => self.refused = self.refused.saturating_add(1),
        }
        verdict
    }

    /// The generation the gate is open at, if it is open.
    #[must_use]
    pub const fn open_at(&self) -> Option<Generation> {
        self.open_at
    }

    /// The highest generation this gate has been opened or fenced at.
    #[must_use]
    pub const fn highest(&self) -> Generation {
        self.highest
    }

    /// How many frames were let through.
    #[must_use]
    pub const fn passed(&self) -> u64 {
        self.passed
    }

    /// How many frames were refused, whatever the reason.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
