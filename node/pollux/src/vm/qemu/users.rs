//! Whom QEMUs run as.

use pollux_qemu::Identity;
use pollux_state::id::VmId;

/// The users that QEMUs run as: one for each VM, and each in a group of the same number. They need no names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    /// The lowest number.
    pub first: u32,
    /// How many: two VMs that far apart share one.
    pub count: u32,
}

impl Default for Users {
    /// From a range in which nobody else hands numbers out: above those of containers, below the half that programs with signed
    /// numbers cannot have.
    fn default() -> Self {
        Self { first: 0x7000_0000, count: 1 << 20 }
    }
}

impl std::str::FromStr for Users {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted =
            || format!("'{text}' is no range of user numbers like 1879048192-1880096767, without 0 and 65534 to 65535");
        let (first, last) = text.split_once('-').ok_or_else(wanted)?;
        let (first, last): (u32, u32) = (first.parse().map_err(|_| wanted())?, last.parse().map_err(|_| wanted())?);
        // Root, nobody, and the two numbers that mean "none".
        let reserved = [0, 65_534, 65_535, u32::MAX];
        if first > last || reserved.iter().any(|number| (first..=last).contains(number)) {
            return Err(wanted());
        }
        Ok(Self { first, count: last - first + 1 })
    }
}

impl Users {
    /// Whom the QEMU of `vm` runs as; a daemon that is not root cannot become somebody else.
    pub(super) fn of(self, vm: VmId) -> Option<Identity> {
        let offset = u32::try_from(vm.0 % u64::from(self.count)).unwrap_or_default();
        let number = self.first + offset;
        rustix::process::geteuid().is_root().then_some(Identity { uid: number, gid: number })
    }

    /// Whom `qemu-img` runs as: the last of them, which VMs come to last.
    pub(crate) fn of_image_tool(self) -> Option<pollux_image::Identity> {
        let number = self.first + (self.count - 1);
        rustix::process::geteuid().is_root().then_some(pollux_image::Identity { uid: number, gid: number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vm_has_a_user_of_its_own_and_none_is_anybodys() {
        let users = Users::default();
        assert!(i32::try_from(users.first + (users.count - 1)).is_ok());
        assert_eq!("1879048192-1880096767".parse(), Ok(users));
        for bad in ["", "5", "9-5", "0-10", "60000-70000", "4000000000-4294967295", "a-b", "1-2-3"] {
            assert!(bad.parse::<Users>().is_err(), "{bad} was taken");
        }
        if rustix::process::geteuid().is_root() {
            let user = |vm| users.of(VmId(vm)).map(|identity| identity.uid);
            assert_eq!(user(7), Some(users.first + 7));
            assert_ne!(user(7), user(8));
            assert_eq!(user(u64::from(users.count) + 7), user(7), "beyond the range they begin again");
        }
    }
}
