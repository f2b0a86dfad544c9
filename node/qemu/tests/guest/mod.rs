//! A guest whose written pages and whose output are known exactly, and how to start it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use pollux_memory::GuestMemory;
use pollux_qemu::{Accelerator, Boot, Identity, Launch, Machine, NicFd, Role, Spawner, TrackingWish};

pub const MIB: u64 = 1 << 20;
pub const MEMORY_BYTES: u64 = 32 * MIB;
/// Nobody and nogroup.
pub const NOBODY: Identity = Identity { uid: 65534, gid: 65534 };
/// Longest wait for anything, in any test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The pages the guest writes once per round; it writes no other.
pub const PAGES_WRITTEN: std::ops::Range<u64> = 0x20..0x80;

/// For ever: adds one to the first word of each of 96 pages, then prints the first of them as a line of eight digits.
///
/// ```text
///          cli; mov ss, 0x2000; mov sp, 0x1000     the stack is in the first of the pages
///   round: mov bx, 0x2000
///   page:  mov es, bx; inc dword es:[0]
///          add bx, 0x100; cmp bx, 0x8000; jne page
///          mov ebx, ss:[0]; mov cx, 8
///   digit: rol ebx, 4; mov al, bl; and al, 15; add al, '0'; cmp al, '9'; jbe put; add al, 39
///   put:   call send; loop digit
///          mov al, 10; call send; jmp round
///   send:  mov ah, al; mov dx, 0x3fd
///   wait:  in al, dx; test al, 0x20; jz wait       until the serial port takes a byte
///          mov dx, 0x3f8; mov al, ah; out dx, al; ret
/// ```
const PROGRAM: [u8; 84] = [
    0xfa, 0xb8, 0x00, 0x20, 0x8e, 0xd0, 0xbc, 0x00, 0x10, 0xbb, 0x00, 0x20, 0x8e, 0xc3, 0x26, 0x66, 0xff, 0x06, 0x00,
    0x00, 0x81, 0xc3, 0x00, 0x01, 0x81, 0xfb, 0x00, 0x80, 0x75, 0xee, 0x36, 0x66, 0x8b, 0x1e, 0x00, 0x00, 0xb9, 0x08,
    0x00, 0x66, 0xc1, 0xc3, 0x04, 0x88, 0xd8, 0x24, 0x0f, 0x04, 0x30, 0x3c, 0x39, 0x76, 0x02, 0x04, 0x27, 0xe8, 0x09,
    0x00, 0xe2, 0xeb, 0xb0, 0x0a, 0xe8, 0x02, 0x00, 0xeb, 0xc6, 0x88, 0xc4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74,
    0xfb, 0xba, 0xf8, 0x03, 0x88, 0xe0, 0xee, 0xc3,
];

/// The QEMU under test: the installed one, or another version named in the environment.
pub fn qemu() -> PathBuf {
    std::env::var_os("POLLUX_TEST_QEMU").map_or_else(|| "/usr/bin/qemu-system-x86_64".into(), PathBuf::from)
}

/// Which file the guest comes from.
#[derive(Clone, Copy, PartialEq)]
pub enum Disguise {
    /// The first sector of a disk.
    Sector,
    /// A Linux kernel, of which the boot loader starts the real-mode part: the way real guests boot.
    Kernel,
}

/// The world of one test: a spawner and a place for files.
pub struct World {
    pub spawner: Spawner,
    directory: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self { spawner: Spawner::start().unwrap(), directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What to start for the guest on `memory`.
    pub fn launch(&self, name: &str, memory: &GuestMemory, disguise: Disguise, role: Role) -> Launch {
        Launch {
            name: name.to_owned(),
            binary: qemu(),
            accelerator: Accelerator::Tcg,
            machine: "pc-q35-7.2".to_owned(),
            cpu: "max".to_owned(),
            vcpus: 1,
            memory_bytes: memory.bytes(),
            memory: memory.fd().try_clone_to_owned().unwrap(),
            boot: disguise.boot(self.directory.path()),
            nics: Vec::new(),
            disks: Vec::new(),
            firmware: None,
            role,
            identity: rustix::process::geteuid().is_root().then_some(NOBODY),
            cgroup: None,
            tracking: TrackingWish::Required,
        }
    }

    pub async fn start(&self, name: &str, memory: &GuestMemory, disguise: Disguise, role: Role) -> Machine {
        Machine::start(&self.spawner, self.launch(name, memory, disguise, role)).await.unwrap()
    }
}

pub fn memory() -> GuestMemory {
    GuestMemory::create("pollux-test", MEMORY_BYTES).unwrap()
}

impl Disguise {
    fn boot(self, directory: &Path) -> Boot {
        match self {
            Self::Sector => sector(&directory.join("sector"), &PROGRAM),
            Self::Kernel => {
                let (kernel, initrd) = (directory.join("kernel"), directory.join("initrd"));
                fs::write(&kernel, bzimage()).unwrap();
                fs::write(&initrd, [0x5a; 5000]).unwrap();
                Boot::Kernel { kernel, initrd: Some(initrd), append: "quiet, \"x\"=y".to_owned() }
            }
        }
    }
}

/// A disk whose first sector is a program.
pub fn sector(path: &Path, program: &[u8]) -> Boot {
    // The firmware reads no disk of a single sector.
    let mut disk = vec![0; 1 << 20];
    disk[..program.len()].copy_from_slice(program);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(path, disk).unwrap();
    Boot::Sector(path.to_owned())
}

/// A file with the header of a Linux kernel (boot protocol 2.6) whose real-mode part is the program.
fn bzimage() -> Vec<u8> {
    const SETUP_SECTORS: u8 = 4;
    const ENTRY: usize = 0x200;
    const CODE: usize = 0x280;
    let mut image = vec![0; 512 * (1 + usize::from(SETUP_SECTORS)) + 4096];
    image[0x1f1] = SETUP_SECTORS;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    // A short jump over the rest of the header.
    image[ENTRY..ENTRY + 2].copy_from_slice(&[0xeb, u8::try_from(CODE - ENTRY - 2).unwrap()]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x06, 0x02]);
    image[0x211] = 1; // the protected-mode part goes to 1 MiB
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes());
    image[CODE..CODE + PROGRAM.len()].copy_from_slice(&PROGRAM);
    image
}

/// The numbers the guest has printed, whole lines only.
pub fn numbers(log: &[u8]) -> Vec<u32> {
    let text = String::from_utf8_lossy(log);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    // The log's first line may be the end of one.
    whole.lines().filter(|line| line.len() == 8).filter_map(|line| u32::from_str_radix(line, 16).ok()).collect()
}

/// Waits until `condition` holds, looking every few milliseconds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"));
}

/// Waits until the guest has written each of its pages at least once more, as its memory itself tells. (What it prints
/// may have waited in a socket for long.)
pub async fn writes_all(memory: &GuestMemory) {
    let rounds = || {
        let mut page = [0; 4096];
        memory.read_page(PAGES_WRITTEN.end - 1, &mut page);
        u32::from_le_bytes([page[0], page[1], page[2], page[3]])
    };
    let before = rounds();
    // The round that is under way may be past some pages; the one after it is whole.
    until("the guest to write", || rounds().wrapping_sub(before) >= 2).await;
}

/// Waits until the guest has printed `more` further numbers.
pub async fn counts_on(machine: &Machine, more: usize) {
    let before = machine.console().placed_log();
    let seen = before.0 + before.1.len() as u64;
    until("the guest to count", || {
        let (start, log) = machine.console().placed_log();
        start + log.len() as u64 >= seen + 9 * more as u64
    })
    .await;
}

/// Is the process there, be it as a zombie?
pub fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A network card and the other end of its wire.
pub fn nic(number: u8) -> (NicFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (NicFd { mac: format!("52:54:00:00:00:{number:02x}"), socket: OwnedFd::from(theirs), mtu: None }, ours)
}
