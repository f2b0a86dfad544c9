//! Names for the things a cluster agrees on. Every identity is minted once and never reused (DESIGN, rule 19).

use core::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::limits;

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            ///
            /// # Panics
            /// When 2^64 of them have been used, which is longer than any cluster lives.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a 64-bit counter does not run out"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

counted!(
    /// A host running `pollux`. 0 is no node.
    NodeId, "node-"
);
counted!(
    /// A virtual machine. 0 is no VM.
    VmId, "vm-"
);
counted!(
    /// A place for replicas on one node. 0 is no pool.
    PoolId, "pool-"
);
counted!(
    /// A virtual disk. 0 is no volume.
    VolumeId, "volume-"
);
counted!(
    /// One copy of a volume, in one pool. 0 is no replica.
    ReplicaId, "replica-"
);
counted!(
    /// The fencing number of one VM: rises by one whenever the right to run changes hands. 0: never ran. A volume has one of its
    /// own, which does the same for the right to write.
    Generation, "g"
);
counted!(
    /// One life of a daemon: minted and committed each time one starts. 0: never started.
    Incarnation, "i"
);

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let digits = text.as_bytes();
                if digits.len() != 32 {
                    return Err(ParseIdError);
                }
                let mut bytes = [0; 16];
                for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                    *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

random_id!(
    /// One cluster, for ever. 32 hexadecimal digits as text.
    ClusterId
);
random_id!(
    /// One proposal or one operation: a repeated proposal recognises its own success by it (DESIGN, rule 2).
    OpId
);

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an identifier here is 32 hexadecimal digits")]
pub struct ParseIdError;

fn hex_digit(byte: u8) -> Result<u8, ParseIdError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(ParseIdError),
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let [high, low] = parts.next().ok_or(ParseIdError)?.as_bytes() else { return Err(ParseIdError) };
            *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
        }
        if parts.next().is_some() { Err(ParseIdError) } else { Ok(Self(bytes)) }
    }
}

/// One life of one node's daemon: who may own a VM (DESIGN, rule 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Which life of its daemon.
    pub incarnation: Incarnation,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.incarnation)
    }
}

/// Whether this can be the name of a node: one DNS label.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    (1..=limits::NODE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}
