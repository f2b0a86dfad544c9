//! Who is measured.

use clap::ValueEnum;

use crate::{case::Case, place::File};

/// Who serves, or what is measured without a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Server {
    /// Our server on one bare replica, with the engine that a daemon would choose: no mirror, no log.
    Pollux,
    /// The same, by io_uring.
    PolluxRing,
    /// The same, by threads.
    PolluxThreads,
    /// QEMU's, as it comes: page cache, a pool of threads.
    QemuNbd,
    /// QEMU's, by io_uring.
    QemuNbdIoUring,
    /// nbdkit's file plugin: a pool of threads.
    NbdkitFile,
    /// A volume as a VM has it, with one replica: mirror and activity log.
    Replicas1,
    /// With another replica on another node.
    Replicas2,
    /// With two more on two more nodes.
    Replicas3,
    /// QEMU's own mirror: a storage daemon here, a job that writes to both, `qemu-nbd` on another node over plain TCP.
    QemuMirror,
    /// fio on the file itself, through the page cache.
    RawDisk,
    /// What is written, over one plain TCP connection to another node, each answered by 16 bytes.
    RawLink,
}

/// What kind of thing that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Our server on a bare replica.
    Bare,
    /// A volume with so many replicas.
    Volume(u64),
    Peer,
    QemuMirror,
    RawDisk,
    RawLink,
}

impl Server {
    pub(crate) const USUAL: [Self; 9] = [
        Self::Pollux,
        Self::QemuNbd,
        Self::NbdkitFile,
        Self::Replicas1,
        Self::Replicas2,
        Self::Replicas3,
        Self::QemuMirror,
        Self::RawDisk,
        Self::RawLink,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pollux => "pollux",
            Self::PolluxRing => "pollux-ring",
            Self::PolluxThreads => "pollux-threads",
            Self::QemuNbd => "qemu-nbd",
            Self::QemuNbdIoUring => "qemu-nbd-io-uring",
            Self::NbdkitFile => "nbdkit-file",
            Self::Replicas1 => "pollux-replicas1",
            Self::Replicas2 => "pollux-replicas2",
            Self::Replicas3 => "pollux-replicas3",
            Self::QemuMirror => "qemu-mirror",
            Self::RawDisk => "raw-disk",
            Self::RawLink => "raw-link",
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Pollux | Self::PolluxRing | Self::PolluxThreads => Kind::Bare,
            Self::QemuNbd | Self::QemuNbdIoUring | Self::NbdkitFile => Kind::Peer,
            Self::Replicas1 => Kind::Volume(1),
            Self::Replicas2 => Kind::Volume(2),
            Self::Replicas3 => Kind::Volume(3),
            Self::QemuMirror => Kind::QemuMirror,
            Self::RawDisk => Kind::RawDisk,
            Self::RawLink => Kind::RawLink,
        }
    }

    /// Whether it needs more than one node.
    pub(crate) fn travels(self) -> bool {
        match self.kind() {
            Kind::Volume(replicas) => replicas > 1,
            Kind::QemuMirror | Kind::RawLink => true,
            Kind::Bare | Kind::Peer | Kind::RawDisk => false,
        }
    }

    /// Whether the case says anything about it. What is read never travels: it is there, and the same with any number of replicas.
    pub(crate) fn is_about(self, case: Case) -> bool {
        match self.kind() {
            Kind::Volume(1) | Kind::Bare if case.wide => true,
            _ if case.wide => false,
            Kind::Bare | Kind::Volume(1 | 2) | Kind::QemuMirror if case.cold => true,
            _ if case.cold => false,
            Kind::Bare | Kind::Peer | Kind::Volume(1) => true,
            Kind::Volume(_) | Kind::QemuMirror | Kind::RawDisk | Kind::RawLink => !case.reads,
        }
    }

    /// The files it works on. Whoever works on several leaves them equal; the first is where the guest would be.
    pub(crate) fn files(self, case: Case) -> &'static [File] {
        match self.kind() {
            Kind::Bare | Kind::Volume(1) if case.wide => &[File::Wide],
            Kind::Bare | Kind::Peer | Kind::RawDisk | Kind::Volume(1) => &[File::Alone],
            Kind::Volume(2) | Kind::QemuMirror => &[File::PairHere, File::PairThere],
            Kind::Volume(_) => &[File::ThreeHere, File::ThreeThere, File::ThreeBeyond],
            Kind::RawLink => &[],
        }
    }
}
