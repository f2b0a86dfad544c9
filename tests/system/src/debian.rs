//! The Debian guest in a story: its disk as a volume from which it boots, a second one for data, and what works on that.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    World,
    client::Client,
    disks::POOL,
    image,
    views::Vm,
    waiting::{SETTLE, until},
};

/// Its address.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// Guest memory.
const MEMORY: &str = "512M";
/// Longest wait for it to be up: it takes half a minute without hardware help, and minutes where others want the
/// processors, too.
const UP: Duration = Duration::from_secs(400);
/// Longest wait for an ordinary command in it.
const COMMAND: Duration = Duration::from_secs(120);
/// Longest wait for it to switch itself off in order.
const OFF: &str = "150s";

/// What a kernel says when a disk has let it down.
const DISK_FAULTS: &str =
    "I/O error|EXT4-fs error|EXT4-fs warning|Buffer I/O|Remounting filesystem read-only|critical medium";

/// Writes blocks at random and reads each back through the disk, pass after pass with other data, until it is told to end or finds one
/// that is not as written.
const FIO_PASS: &str = "fio --name=pass --filename=/data/fio --size=8M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=8 \
                        --fsync=64 --end_fsync=1 --verify=crc32c --do_verify=1 --verify_fatal=1";
/// Writes blocks that are read back by `FIO_SEALED --verify_only`, much later.
const FIO_SEALED: &str = "fio --name=sealed --filename=/data/sealed --size=16M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio \
                          --iodepth=8 --end_fsync=1 --verify=crc32c --verify_fatal=1";

/// The Debian guest's data disk, as it sees it.
#[derive(Clone, Debug)]
pub struct DataDisk {
    device: String,
}

impl World {
    /// Puts the Debian guest's disk, a raw image, into a node's directory.
    ///
    /// # Panics
    /// If it cannot be made.
    #[track_caller]
    #[must_use]
    pub fn debian_image(&self, node: &str) -> PathBuf {
        let at = self.host(node).dir().expect("a node has a directory").join("debian.img");
        image::debian_disk(&at, &format!("pollux.ip={ADDRESS}/24 pollux.hostname=web"));
        at
    }

    /// Makes a volume of an image that lies on the first of these nodes, with a replica on each.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn import(&self, name: &str, image: &Path, nodes: &[&str]) {
        let places: Vec<String> = nodes.iter().map(|node| format!("{node}:{POOL}")).collect();
        let image = image.to_string_lossy();
        let mut words = vec!["volume", "import", name, "--from", &image];
        words.extend(places.iter().flat_map(|place| ["--pool", place]));
        let _: serde_json::Value = self.pollux(nodes[0], &words).json();
    }

    /// Creates VM `web` of volumes, the first of which is the Debian guest's disk, and waits until it is up. Returns which boot it is.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn boot_debian(&self, node: &str, volumes: &[&str]) -> (Client, String) {
        let mut words = vec!["vm", "create", "web", "--node", node, "--memory", MEMORY, "--vcpus", "2", "--nic", "br0"];
        words.extend(volumes.iter().flat_map(|volume| ["--volume", volume]));
        let _: Vm = self.pollux(node, &words).json();
        let client = Client::new(self.host("lan"), ADDRESS);
        let boot = client.is_up();
        (client, boot)
    }

    /// Switches VM `web` off by its button, in order.
    ///
    /// # Panics
    /// If it does not react.
    #[track_caller]
    pub fn switch_off(&self, via: &str) {
        let _: Vm = self.pollux(via, &["vm", "stop", "web", "--timeout", OFF]).json();
    }

    /// A volume as the guest's disk.
    ///
    /// # Panics
    /// If there is no such volume.
    #[track_caller]
    #[must_use]
    pub fn data_disk(&self, via: &str, name: &str) -> DataDisk {
        DataDisk { device: format!("/dev/disk/by-id/virtio-volume-{}", self.volume(via, name).id) }
    }

    /// The file in which a node keeps its replica of a volume.
    ///
    /// # Panics
    /// If it has none.
    #[track_caller]
    #[must_use]
    pub fn replica_file(&self, via: &str, name: &str, node: &str) -> PathBuf {
        let volume = self.volume(via, name);
        let replica = volume.replicas.iter().find(|it| it.node == node);
        self.data_of(&volume, replica.unwrap_or_else(|| panic!("{name} has no replica on {node}")))
    }
}

impl Client {
    /// Waits until the Debian guest answers, and returns which boot it is.
    ///
    /// # Panics
    /// If it does not within the time a boot takes.
    #[track_caller]
    pub fn is_up(&self) -> String {
        self.hello_within(UP).boot
    }

    /// Carries a command out in the guest, and returns what it wrote.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn must(&self, command: &str) -> String {
        let ran = self.run(command, COMMAND);
        assert_eq!(ran.code, 0, "`{command}` in the guest: {}", ran.output);
        ran.output.trim_end().to_owned()
    }

    /// The guest's kernel has no complaint about its disks.
    ///
    /// # Panics
    /// If it has.
    #[track_caller]
    pub fn disks_are_well(&self) {
        let said = self.run(&format!("dmesg | grep -E '{DISK_FAULTS}'"), COMMAND);
        assert_eq!((said.code, said.output.as_str()), (1, ""), "the guest's kernel complains of its disks");
    }

    /// Makes a file system on the data disk, and has PostgreSQL keep everything there.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn settles_on(&self, disk: &DataDisk) {
        let device = &disk.device;
        self.must(&format!("udevadm settle && mkfs.ext4 -q {device} && mkdir -p /data && mount {device} /data"));
        self.must("systemctl stop 'postgresql@*' && cp -a /var/lib/postgresql /data/postgresql && sync");
        self.starts_postgresql();
    }

    /// After a boot: checks the data disk's file system, and has PostgreSQL use it again. Whatever its journal holds is replayed; nothing
    /// else may be wrong.
    ///
    /// # Panics
    /// If something is.
    #[track_caller]
    pub fn settles_again_on(&self, disk: &DataDisk) {
        let device = &disk.device;
        self.must("systemctl stop 'postgresql@*'");
        let replayed = self.run(&format!("udevadm settle && e2fsck -p {device}"), COMMAND);
        assert!(replayed.code <= 1, "e2fsck found more than a journal to replay: {}", replayed.output);
        self.file_system_is_clean(disk);
        self.must(&format!("mkdir -p /data && mount {device} /data"));
        self.starts_postgresql();
    }

    #[track_caller]
    fn starts_postgresql(&self) {
        self.must("mount --bind /data/postgresql /var/lib/postgresql && systemctl start postgresql@$(ls /etc/postgresql)-main");
    }

    /// Unmounts the data disk, and finds its file system without a fault.
    ///
    /// # Panics
    /// If there is one.
    #[track_caller]
    pub fn leaves(&self, disk: &DataDisk) {
        self.must("systemctl stop 'postgresql@*' && umount /var/lib/postgresql && umount /data");
        self.file_system_is_clean(disk);
    }

    #[track_caller]
    fn file_system_is_clean(&self, disk: &DataDisk) {
        self.must(&format!("e2fsck -f -n {}", disk.device));
    }

    /// fio writes and verifies on the data disk from here on, pass after pass.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn fio_begins(&self) {
        let pass =
            format!("{FIO_PASS} --randseed=$n > /run/fio.log 2>&1 || {{ mv /run/fio.log /run/fio.failed; break; }}");
        self.in_background("fio", &pass);
    }

    /// Waits until fio has ended the pass under way and another one that began after now.
    ///
    /// # Panics
    /// If it found something that is not as written, or takes longer than `limit`.
    #[track_caller]
    pub fn fio_goes_on(&self, limit: Duration) {
        self.background_goes_on("fio", 2, limit);
    }

    /// Ends fio after the pass under way.
    ///
    /// # Panics
    /// If it found something that is not as written.
    #[track_caller]
    pub fn fio_ends(&self) {
        self.background_ends("fio");
    }

    /// New files are written to the data disk from here on, one after the other, each flushed.
    ///
    /// # Panics
    /// If that cannot be started.
    #[track_caller]
    pub fn files_begin(&self) {
        self.must("mkdir -p /data/files");
        let write = "dd if=/dev/urandom of=/data/files/$n bs=64k count=16 conv=fsync status=none 2> /run/files.log \
                     || { mv /run/files.log /run/files.failed; break; }";
        self.in_background("files", &format!("{write}; sha256sum /data/files/$n >> /run/files.sums"));
    }

    /// Waits until some more of them are there.
    ///
    /// # Panics
    /// If one could not be written, or it takes longer than `limit`.
    #[track_caller]
    pub fn files_go_on(&self, limit: Duration) {
        self.background_goes_on("files", 4, limit);
    }

    /// Writes no more of them, and reads all of them back from the disk.
    ///
    /// # Panics
    /// If one is not as it was written.
    #[track_caller]
    pub fn files_are_whole(&self) {
        self.background_ends("files");
        self.must("sync && echo 3 > /proc/sys/vm/drop_caches && sha256sum --quiet -c /run/files.sums");
    }

    /// Writes blocks that are flushed when this returns.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn seals(&self) {
        self.must(&format!("{FIO_SEALED} --do_verify=0"));
    }

    /// Finds them as they were written.
    ///
    /// # Panics
    /// If one is not.
    #[track_caller]
    pub fn seal_is_whole(&self) {
        self.must(&format!("{FIO_SEALED} --verify_only"));
    }

    /// Repeats `work` in the guest, with `$n` counting, until it is told to end. Whoever asks for the count finds one at any time. What it leaves under `/run` is gone with the boot.
    #[track_caller]
    fn in_background(&self, name: &str, work: &str) {
        let counted = format!("echo $n > /run/{name}.new; mv /run/{name}.new /run/{name}.passes");
        let script = format!(
            "n=0; while [ ! -e /run/{name}.stop ]; do n=$((n+1)); {work}; {counted}; done; touch /run/{name}.over"
        );
        self.must(&format!("cd / && setsid sh -c '{script}' < /dev/null > /dev/null 2>&1 &"));
    }

    #[track_caller]
    fn passes(&self, name: &str) -> u64 {
        let told = self.must(&format!(
            "cat /run/{name}.failed 2> /dev/null && exit 9; cat /run/{name}.passes 2> /dev/null || echo 0"
        ));
        told.parse().unwrap_or_else(|_| panic!("no number of passes: {told}"))
    }

    #[track_caller]
    fn background_goes_on(&self, name: &str, passes: u64, limit: Duration) {
        let before = self.passes(name);
        until(&format!("{name} to go on in the guest"), limit, || {
            let now = self.passes(name);
            if now >= before + passes { Ok(()) } else { Err(format!("pass {before}, then {now}")) }
        });
    }

    #[track_caller]
    fn background_ends(&self, name: &str) {
        self.must(&format!("touch /run/{name}.stop"));
        until(&format!("{name} to end in the guest"), SETTLE, || {
            let over = self.run(&format!("test -e /run/{name}.over"), COMMAND);
            if over.code == 0 { Ok(()) } else { Err("it goes on".to_owned()) }
        });
        assert!(self.passes(name) > 0, "{name} never did anything");
    }
}
