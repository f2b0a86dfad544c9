//! What a lab remembers between two invocations: `lab.json` in its directory.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::{
    error::LabError,
    fault::Cut,
    name::{self, LabName},
    process::Process,
};

const STATE_FILE: &str = "lab.json";
const VERSION: u8 = 1;

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Its name.
    pub name: LabName,
    /// How many nodes: n1, n2, ...
    pub nodes: u8,
    /// What runs on each.
    pub daemon: Daemon,
    /// Where it keeps its files; `/run/pollux-lab/NAME` if not said. Must be empty or not there.
    pub dir: Option<PathBuf>,
}

/// What runs on each node of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Daemon {
    /// Pollux, this binary of it: the nodes form a cluster.
    Pollux(PathBuf),
    /// Any other command, the same on each node: hosts on a network and nothing more.
    Command(Vec<String>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    version: u8,
    pub(crate) name: LabName,
    pub(crate) daemon: Daemon,
    pub(crate) nodes: Vec<Node>,
    pub(crate) cuts: BTreeSet<Cut>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) process: Option<Process>,
}

impl State {
    pub(crate) fn new(config: &LabConfig) -> Self {
        let nodes = (1..=config.nodes).map(|number| Node { number, process: None }).collect();
        Self {
            version: VERSION,
            name: config.name.clone(),
            daemon: config.daemon.clone(),
            nodes,
            cuts: BTreeSet::new(),
        }
    }

    /// `None` when there is none.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, LabError> {
        let path = dir.join(STATE_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(LabError::io(format!("reading {}", path.display()))(error)),
        };
        let state: Self =
            serde_json::from_slice(&text).map_err(|source| LabError::BadState { path: path.clone(), source })?;
        if state.version == VERSION {
            return Ok(Some(state));
        }
        let source = serde::de::Error::custom(format!("version {} instead of {VERSION}", state.version));
        Err(LabError::BadState { path, source })
    }

    /// Whole or not at all: a reader never sees half of it.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), LabError> {
        let path = dir.join(STATE_FILE);
        let failed = || LabError::io(format!("writing {}", path.display()));
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed()(error.into()))?;
        let draft = path.with_extension("draft");
        fs::write(&draft, text).map_err(failed())?;
        fs::rename(&draft, &path).map_err(failed())
    }

    pub(crate) fn node(&mut self, number: u8) -> Result<&mut Node, LabError> {
        let lab = self.name.to_string();
        let hosts = self.nodes.iter().map(|node| name::node(node.number)).collect();
        let missing = LabError::NoHost { lab, host: name::node(number), hosts };
        self.nodes.iter_mut().find(|node| node.number == number).ok_or(missing)
    }

    pub(crate) fn size(&self) -> u8 {
        self.nodes.last().map_or(0, |node| node.number)
    }

    /// Takes away what this package put into `dir`, and `dir` itself if that was all.
    pub(crate) fn remove_files(dir: &Path) -> Result<(), LabError> {
        let failed = |path: &Path| LabError::io(format!("removing {}", path.display()));
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let file_name = entry.file_name();
            let ours = file_name.to_str().unwrap_or_default();
            if crate::fault::node_number(ours).is_some() {
                unmount_pools(&path)?;
                fs::remove_dir_all(&path).map_err(failed(&path))?;
            } else if ours.starts_with("lab.") {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        match fs::remove_dir(dir) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // A user's own files in a directory the user named are the user's.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) => Err(failed(dir)(error)),
        }
    }
}

/// Unmounts the devices that a daemon has mounted as its pools, and could not unmount because it was killed.
fn unmount_pools(node: &Path) -> Result<(), LabError> {
    for entry in fs::read_dir(node.join("pools")).into_iter().flatten().flatten() {
        let at = entry.path();
        match umount2(&at, MntFlags::MNT_DETACH) {
            // Nothing was mounted there.
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(error) => return Err(LabError::io(format!("unmounting {}", at.display()))(error.into())),
        }
    }
    Ok(())
}
