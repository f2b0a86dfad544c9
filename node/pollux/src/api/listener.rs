//! The Unix socket the API is served on: who may open it, and whether somebody else serves it already.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
        net::UnixStream as BlockingStream,
    },
    path::{Path, PathBuf},
};

use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};

/// Read and write for the owner and the group, nothing for others.
const SOCKET_MODE: u32 = 0o660;
/// The group whose members may use the API, where it exists.
const SOCKET_GROUP: &str = "pollux";
/// Longest path of a socket in bytes: `sun_path` less its NUL and the suffix used while it is made.
const SOCKET_PATH_BYTES_MAX: usize = 107 - NEW_SUFFIX.len();
const NEW_SUFFIX: &str = ".new";

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A daemon answers there.
    #[error("a daemon answers on {} already; stop it first, or serve on another path with --socket", .0.display())]
    AlreadyServed(PathBuf),
    /// Something else has that path.
    #[error("{} is not a socket; remove it, or serve on another path with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The kernel does not take paths that long.
    #[error("the socket path {} is longer than {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter one with --socket", .0.display())]
    PathTooLong(PathBuf),
    /// The system said no.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// A bound socket. Its file is removed when this is dropped, unless another has taken the path since.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file this made.
    made: (u64, u64),
}

impl Socket {
    /// Listen on `path`. A socket on which nobody answers is what a killed daemon left, and is replaced.
    ///
    /// The socket is made beside its place and moved there when its mode and group are right, so that nobody who may not use
    /// it can open it in between.
    pub(crate) fn bind(path: &Path) -> Result<Self, ServeError> {
        let fault = |doing: &'static str| {
            let path = path.to_owned();
            move |source| ServeError::Io { doing, path, source }
        };
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(ServeError::PathTooLong(path.to_owned()));
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fault("make the directory of"))?;
        }
        refuse_if_served(path)?;

        let mut new = path.as_os_str().to_owned();
        new.push(NEW_SUFFIX);
        let new = PathBuf::from(new);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fault("clear away what is left beside")(error));
            }
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&new).map_err(fault("listen on"))?;
        if let Ok(Some(group)) = Group::from_name(SOCKET_GROUP) {
            chown(&new, None, Some(group.gid.as_raw())).map_err(fault("give group `pollux` the socket"))?;
        }
        fs::set_permissions(&new, fs::Permissions::from_mode(SOCKET_MODE)).map_err(fault("set the mode of"))?;
        let made = identity(&new).map_err(fault("look at"))?;
        fs::rename(&new, path).map_err(fault("put the socket at"))?;
        Ok(Self { listener, path: path.to_owned(), made })
    }

    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.made) {
            // Best effort: a file that stays is replaced by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

fn refuse_if_served(path: &Path) -> Result<(), ServeError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(ServeError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ServeError::Io { doing: "look at", path: path.to_owned(), source }),
        Ok(_) => {}
    }
    // Answered or refused at once by the kernel: nobody needs to accept for that.
    match BlockingStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(source) => {
            Err(ServeError::Io { doing: "find out whether a daemon answers on", path: path.to_owned(), source })
        }
        Ok(_) => Err(ServeError::AlreadyServed(path.to_owned())),
    }
}
