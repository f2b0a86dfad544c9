//! What can be done to the cables of the cluster network. Pure.

use std::{collections::BTreeSet, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    error::LabError,
    name::{self, NODES_MAX},
};

/// One or more cables between nodes, as a user writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// `n1`: from and to every other node.
    Of(u8),
    /// `n1:n2`: both ways between two nodes.
    Between(u8, u8),
    /// `n1>n2`: from the first to the second only.
    Towards {
        /// The node that is not heard any more.
        from: u8,
        /// The node that does not hear it.
        to: u8,
    },
}

/// One direction of one cable that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Cut {
    pub(crate) from: u8,
    pub(crate) to: u8,
}

impl FromStr for Cable {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let bad = || LabError::BadCable(text.to_owned());
        let node = |name: &str| node_number(name).ok_or_else(bad);
        let cable = match (text.split_once(':'), text.split_once('>')) {
            (Some((a, b)), _) => Self::Between(node(a)?, node(b)?),
            (None, Some((from, to))) => Self::Towards { from: node(from)?, to: node(to)? },
            (None, None) => Self::Of(node(text)?),
        };
        match cable {
            Self::Between(a, b) | Self::Towards { from: a, to: b } if a == b => Err(bad()),
            Self::Between(..) | Self::Towards { .. } | Self::Of(_) => Ok(cable),
        }
    }
}

impl Cable {
    /// The directions it stands for in a lab of `nodes` nodes.
    pub(crate) fn cuts(self, nodes: u8) -> Result<BTreeSet<Cut>, LabError> {
        let cuts: BTreeSet<Cut> = match self {
            Self::Of(node) => {
                let others = (1..=nodes).filter(|other| *other != node);
                others.flat_map(|other| [Cut { from: node, to: other }, Cut { from: other, to: node }]).collect()
            }
            Self::Between(a, b) => [Cut { from: a, to: b }, Cut { from: b, to: a }].into(),
            Self::Towards { from, to } => [Cut { from, to }].into(),
        };
        let named = match self {
            Self::Of(node) => [node, node],
            Self::Between(a, b) | Self::Towards { from: a, to: b } => [a, b],
        };
        match named.into_iter().find(|node| *node == 0 || *node > nodes) {
            Some(stranger) => Err(LabError::BadCable(name::node(stranger))),
            None => Ok(cuts),
        }
    }
}

impl Cut {
    /// As a user would write it.
    pub(crate) fn written(self) -> String {
        format!("{}>{}", name::node(self.from), name::node(self.to))
    }
}

/// The number in a node's name.
pub(crate) fn node_number(name: &str) -> Option<u8> {
    let number: u8 = name.strip_prefix('n')?.parse().ok()?;
    (1..=NODES_MAX).contains(&number).then_some(number).filter(|number| name == name::node(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(cable: &str, nodes: u8) -> Vec<String> {
        let cable: Cable = cable.parse().unwrap();
        cable.cuts(nodes).unwrap().into_iter().map(Cut::written).collect()
    }

    #[test]
    fn a_cable_is_written_as_people_write_it() {
        assert_eq!(written("n1", 3), ["n1>n2", "n1>n3", "n2>n1", "n3>n1"]);
        assert_eq!(written("n1:n3", 3), ["n1>n3", "n3>n1"]);
        assert_eq!(written("n3>n1", 3), ["n3>n1"]);
    }

    #[test]
    fn what_is_no_cable_is_refused() {
        for bad in ["", "n", "n0", "n10", "n01", "1", "n1:n1", "n1>n1", "n1:", "n1>n2>n3", "lan"] {
            assert!(bad.parse::<Cable>().is_err(), "{bad:?} was taken");
        }
        assert!("n4".parse::<Cable>().unwrap().cuts(3).is_err(), "a lab of three has no fourth node");
    }
}
