//! The ways in which this machine ends, on request and by its power button.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    process::Command,
    thread,
};

use nix::sys::reboot::{RebootMode, reboot};

/// `struct input_event` of Linux on a 64-bit machine: two words of time, type, code, value.
const EVENT_BYTES: usize = 24;
const TYPE_KEY: u16 = 1;
const CODE_POWER: u16 = 116;
const VALUE_PRESSED: i32 = 1;

/// How the machine is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerAction {
    /// Power off.
    Off,
    /// Start afresh.
    Reboot,
    /// Crash the kernel.
    Panic,
}

/// There only where systemd runs the machine (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";

/// Ends the machine: at once, or in order where there is something to be ended in order.
///
/// Returns where that was refused, and where it has only begun.
pub(crate) fn carry_out(action: PowerAction) -> io::Result<()> {
    println!("pollux-guest: {action:?}");
    let (mode, order) = match action {
        PowerAction::Off => (RebootMode::RB_POWER_OFF, "poweroff"),
        PowerAction::Reboot => (RebootMode::RB_AUTOBOOT, "reboot"),
        PowerAction::Panic => return fs::write("/proc/sysrq-trigger", "c"),
    };
    if Path::new(SYSTEMD).is_dir() {
        let ordered = Command::new("systemctl").args(["--no-block", order]).status()?;
        return if ordered.success() { Ok(()) } else { Err(io::Error::other(format!("systemctl {order}: {ordered}"))) };
    }
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => Err(error.into()),
    }
}

/// Starts watching every event device for a power button. Returns how many there are.
pub(crate) fn watch_buttons() -> usize {
    let Ok(devices) = fs::read_dir("/dev/input") else { return 0 };
    let mut watched = 0;
    for events in devices.flatten().filter_map(|device| open_events(&device.path())) {
        thread::spawn(move || watch(events));
        watched += 1;
    }
    watched
}

fn open_events(path: &Path) -> Option<File> {
    path.file_name()?.to_str()?.starts_with("event").then(|| File::open(path).ok())?
}

fn watch(mut device: File) {
    let mut event = [0; EVENT_BYTES];
    while device.read_exact(&mut event).is_ok() {
        if is_power_press(&event)
            && let Err(error) = carry_out(PowerAction::Off)
        {
            println!("pollux-guest: the power button was pressed, but {error}");
        }
    }
}

fn is_power_press(event: &[u8; EVENT_BYTES]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([t0, t1]) == TYPE_KEY
        && u16::from_ne_bytes([c0, c1]) == CODE_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == VALUE_PRESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        let mut event = [0; EVENT_BYTES];
        event[16..].copy_from_slice(&[1, 0, 116, 0, 1, 0, 0, 0]);
        assert!(is_power_press(&event));
        for (at, other) in [(16, 0), (18, 28), (20, 0)] {
            let mut different = event;
            different[at] = other;
            assert!(!is_power_press(&different), "byte {at}");
        }
    }
}
