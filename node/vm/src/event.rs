//! What the core is told, and what it wants done.

use alloc::{string::String, vec::Vec};

use pollux_state::{
    Command, Outcome,
    id::{Generation, OpId, Owner},
    operation::MoveReport,
};

use crate::{Millis, view::View};

/// Names one request of the core, so that its answer finds its way back. Never reused in the life of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The local copy of the log was applied this far.
    Decided(View),
    /// A proposal is in the log, and this came of it. The shell repeats a proposal until it has this or it is withdrawn.
    Answered {
        /// Of [`Effect::Propose`].
        ticket: Ticket,
        /// Its place in the log.
        index: u64,
        /// What came of it.
        outcome: Outcome,
    },
    /// A linearizable read, begun after [`Effect::Confirm`], is done, and every [`Event::Decided`] up to it was delivered.
    Confirmed {
        /// Of the effect.
        ticket: Ticket,
        /// When it was begun: what it says was true then, or later.
        began: Millis,
        /// How long the read took: a quorum's round trip.
        took_ms: u32,
    },
    /// No leader is known any more: what was confirmed before needs confirming again (DESIGN, rule 3).
    LeaderLost,

    /// The kernel lets none of this VM's frames pass any more: this process slept, and what it believed may be over (DESIGN,
    /// rule 5).
    FenceExpired,
    /// The machine exists: its guest waits, paused.
    MachineReady,
    /// The machine could not be made.
    MachineFailed(String),
    /// The machine ended although nobody asked it to.
    MachineEnded(String),
    /// After [`Effect::Discard`]: no process, tap, socket or memory of it is left.
    Gone,
    /// This daemon is about to end in good order: what only it can say has to be said now.
    Leaving,
    /// The guest switched itself off. QEMU keeps it, paused.
    GuestOff,
    /// After [`Effect::Settle`]: what the guest wrote is on stable storage, or that took too long.
    Settled,
    /// After [`Effect::Pause`]: vCPUs are still, every frame of before has left, the gate is closed.
    Paused,
    /// After [`Effect::Resume`]: the guest runs.
    Resumed,
    /// After [`Effect::Resume`]: it does not, and certainly has not executed anything. (Where that is not certain, the machine
    /// counts as ended.)
    NotResumed(String),
    /// After [`Effect::Resume`]: nobody knows whether it executed anything, and the machine has ended.
    ResumeUnknown(String),

    /// After [`Effect::Throttle`]: the guest has its whole speed, and keeps it.
    NotThrottled(String),

    /// The target answered: it is ready for pages.
    PeerReady,
    /// The target will not take part, or does not any more.
    PeerRefused(String),
    /// The connection to the other side of the move is gone.
    SessionLost(String),
    /// After [`Effect::SendRound`], every now and then: where the round stands, for people.
    RoundUnderWay {
        /// What was sent of it so far.
        sent: RoundReport,
        /// Pages of it still to be sent.
        left_pages: u64,
    },
    /// After [`Effect::SendRound`]: the target has all of it.
    RoundLanded(RoundReport),
    /// After [`Effect::Scan`]: pages that must be sent again.
    Scanned {
        /// How many.
        pending_pages: u64,
    },
    /// After [`Effect::HandOver`]: the last pages, the device state and `Complete` are on their way.
    HandedOver,
    /// After [`Effect::HandOver`]: it could not be done.
    HandOverFailed(String),

    /// The source is connected to this target.
    SourceConnected,
    /// The target has every page and the device state.
    AllReceived {
        /// What it cost up to here.
        report: MoveReport,
        /// When the last byte was in.
        at: Millis,
    },
    /// The source said that it gave up.
    PeerAbandoned(String),
    /// After [`Effect::Load`]: the device state is in the standby.
    Loaded,
    /// After [`Effect::Load`]: it is not.
    LoadFailed(String),
    /// After [`Effect::CommitToRun`]: a later life of this daemon will take the guest for one that has acted.
    CommittedToRun,
    /// After [`Effect::CommitToRun`]: that could not be recorded, so it must not act.
    CommitToRunFailed(String),

    /// Time has passed: see [`crate::VmCore::deadline`].
    Tick,
}

/// One pass over memory, as it went. Its time runs until the target had it all: what still lies in send buffers would be
/// in the way of the last pages, and would make the link look faster than it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundReport {
    /// Pages sent, zero pages included.
    pub pages: u64,
    /// Of these, zero pages.
    pub zero_pages: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// How long it took.
    pub took_ms: u64,
}

/// What is to be done. The shell does them in order; none blocks the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make the machine, paused, from nothing or as a standby. Answer: `MachineReady` or `MachineFailed`.
    Launch {
        /// A standby that will be loaded.
        standby: bool,
        /// For names and logs.
        generation: Generation,
    },
    /// End the machine and everything of it, at once. Answer: `Gone`.
    Discard,
    /// Press the guest's power button.
    PowerButton,
    /// The guest is off: put what it wrote on stable storage, so that whoever uses its disks next has nothing to copy. Answer:
    /// `Settled`, within a few seconds.
    Settle,
    /// Pause the guest, let every frame it sent before leave, close the gate. Answer: `Paused`.
    Pause,
    /// Open the gate for frames of this generation, then let the guest run. Answer: `Resumed`.
    Resume {
        /// The generation under which it acts.
        generation: Generation,
    },
    /// Have the kernel let frames pass again, by the answer of [`crate::VmCore::proof`]: the guest runs, and may.
    Unlock,
    /// Close the gate at once: nothing of this VM may leave any more.
    CloseGate,
    /// Tell the bridges where the guest's network cards are now.
    Announce,

    /// Put a command to the log and repeat it under one id until it is answered or withdrawn. Answer: `Answered`.
    Propose {
        /// For the answer.
        ticket: Ticket,
        /// What.
        command: Command,
    },
    /// Do not repeat that proposal any more. It may still be answered by the log.
    Withdraw {
        /// Which.
        ticket: Ticket,
    },
    /// Make sure that the view is current. Answer: `Confirmed`, repeated until it succeeds.
    Confirm {
        /// For the answer.
        ticket: Ticket,
    },

    /// Source: connect to the target and start tracking. Answer: `PeerReady`, `PeerRefused` or `SessionLost`.
    Connect {
        /// The operation.
        op: OpId,
        /// The target.
        to: Owner,
        /// The generation the source owns the VM at.
        generation: Generation,
        /// Most bytes per second that copying may use.
        bandwidth: Option<u64>,
    },
    /// Source: slow the guest down by so many percent of its speed; 0 gives all of it back.
    Throttle {
        /// 0 to [`crate::convergence::THROTTLE_PERCENT_MAX`].
        percent: u8,
    },
    /// Source: send what the last scan found (everything, at first). Answer: `RoundLanded`, `RoundUnderWay` before it.
    SendRound {
        /// From 1.
        round: u32,
    },
    /// Source: find what was written since, protecting it again. Answer: `Scanned`.
    Scan,
    /// Source, guest paused: send what is left, the device state and `Complete`. Answer: `HandedOver` or `HandOverFailed`.
    HandOver {
        /// What was sent until now; the shell adds the last round and the time paused.
        report: MoveReport,
    },
    /// Source or target: end the connection of the move, stop tracking, forget what was pending.
    Disconnect {
        /// Told to the other side.
        reason: String,
    },

    /// Target: admit the source's connection of this operation and generation, and no other.
    Admit {
        /// The operation.
        op: OpId,
        /// The source.
        from: Owner,
        /// The generation.
        generation: Generation,
    },
    /// Target: load the device state into the standby. Answer: `Loaded` or `LoadFailed`.
    Load,
    /// Target: record that the guest may emit from now on, before it does. Answer: `CommittedToRun` or `CommitToRunFailed`.
    CommitToRun {
        /// The operation.
        op: OpId,
    },

    /// For people: where the operation stands.
    Progress(Progress),
}

/// What one event made necessary, in order.
pub type Effects = Vec<Effect>;

/// Where a move stands, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The phase.
    pub phase: MovePhase,
    /// The round under way, from 1.
    pub round: u32,
    /// Bytes of guest memory dealt with so far.
    pub memory_bytes: u64,
    /// Bytes sent so far.
    pub wire_bytes: u64,
    /// Pages still to be sent.
    pub pending_pages: u64,
    /// Pages the guest writes per second, as of the last round.
    pub dirty_pages_per_s: u64,
    /// Bytes of memory the link carried per second, as of the last round.
    pub bytes_per_s: u64,
    /// What a switchover now would cost.
    pub predicted_blackout_ms: u64,
    /// By how many percent the guest is slowed down.
    pub throttle_percent: u8,
}

/// The phases of a move as its source sees them. Each is entered once, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MovePhase {
    /// The target makes its standby.
    #[default]
    Preparing,
    /// Memory is copied while the guest runs.
    Copying,
    /// The guest is paused; the last pages and the device state travel.
    SwitchingOver,
    /// The target has everything; the log decides.
    Deciding,
}
