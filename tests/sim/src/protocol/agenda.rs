//! What can happen in this simulation.

use pollux_state::{
    Applied, Proposal,
    id::{OpId, VmId},
};
use pollux_vm::{Event, Ticket};

use super::{
    Time,
    link::{End, Wire},
};

/// Names one process of a daemon: a node, and which of its processes. Not its incarnation, which it has yet to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    pub(super) node: usize,
    pub(super) serial: u64,
}

/// When something was: in truth, and by the clock of the cores that were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) real: Time,
    pub(super) core: Time,
}

/// Something that happens.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    /// A proposal reaches whoever appends. `from`: who waits for the answer, if somebody does.
    Append { proposal: Proposal, sender: usize, from: Option<Process> },
    /// A read reaches the leader.
    ReadAtLeader { from: Process, vm: VmId, ticket: Ticket, began: Moment },
    /// Something that concerns one process, if it still lives. Waits while the process is stopped.
    To(Process, Task),
    /// The guests of a VM are asked to count, and write to their memory.
    Traffic(VmId),
    /// A user does something.
    User,
    /// A fault.
    Fault,
    /// Trouble for a move of this VM, at this node.
    Trouble(VmId, usize),
    /// A fault ends.
    Heal(Healing),
}

/// The end of a fault.
#[derive(Debug, Clone, Copy)]
pub(super) enum Healing {
    /// The daemon of a node starts.
    Start(usize),
    /// A stopped daemon goes on.
    Wake(Process),
    /// A node reaches the quorum again.
    Rejoin(usize),
    /// The quorum works again.
    Quorum,
    /// The link from one node to another carries again.
    Link(usize, usize),
    /// A node applies promptly again.
    Promptness(usize),
}

/// What one process does.
#[derive(Debug, Clone)]
pub(super) enum Task {
    /// Apply some of the log.
    Apply,
    /// An answer to a proposal.
    Answer { id: OpId, about: Option<(VmId, Ticket)>, applied: Applied },
    /// A proposal has no answer yet.
    Retry { id: OpId },
    /// The leader's answer to a read: the log was at least this long when it was begun.
    ReadReply { vm: VmId, ticket: Ticket, began: Moment, index: u64 },
    /// A read has no answer yet.
    ReadRetry { vm: VmId, ticket: Ticket },
    /// No leader is heard of.
    LeaderLost,
    /// The time a core asked to be woken.
    Tick(VmId),
    /// The fence is told that the guest may still act; `keeper`: since the last time that it was let go on.
    Keep { vm: VmId, keeper: u64 },
    /// A part of the VM did something, if its machine is still this one.
    Machine { vm: VmId, machine: u64, work: Work },
    /// The machine is gone.
    Gone { vm: VmId, machine: Option<u64> },
    /// The source sends some pages of a round.
    Send { vm: VmId, session: u64, pages: u64 },
    /// The answer of a part about a session, if it is still this one.
    Session { vm: VmId, session: u64, event: Event },
    /// Something arrives.
    Deliver { session: u64, to: End, wire: Wire },
    /// The connection is seen to be gone.
    Lost { session: u64, to: End },
    /// The daemon, which ends, waits no longer for the log.
    LeaveAnyway,
}

/// What a machine, or the part that drives it, does.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// It is made.
    Made,
    /// Making it failed.
    Failed,
    /// It is seen to have ended.
    Ended,
    /// It is seen to have been switched off by its guest.
    Off,
    /// The power button is pressed.
    Button,
    /// What the guest wrote is on stable storage, as far as that can be had.
    Settled,
    /// The guest stands still.
    Paused,
    /// QEMU is told that the guest may go on.
    Continue,
    /// What became of that is told.
    Continued,
    /// The last pages and the device state go out.
    HandOver { report: pollux_state::operation::MoveReport },
    /// That they went out is told.
    HandedOver,
    /// The device state is loaded, or not.
    Load,
    /// It is recorded that the guest may act, or that cannot be.
    CommittedToRun { fails: bool },
    /// Only with a negative control: the shell loses its patience.
    Impatient,
}

/// What is going to happen.
pub(super) type Agenda = crate::agenda::Agenda<Happening>;
