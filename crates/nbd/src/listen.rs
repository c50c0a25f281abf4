//! Listening: a Unix socket that only its owner may use, or an address.
//!
//! The socket file of a server that died is replaced, that of a live one is not. Looking and replacing is done under a
//! lock of the folder, so that of two servers started at once one is refused. The mode is set before the socket has a
//! name, so nobody else can slip in between.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, listen, shutdown, socket_with,
    sockopt,
};

use crate::error::{NbdError, Result};
use crate::options::Listen;
use crate::wire::Socket;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;
/// A TCP client that is silent for so long is asked whether it is there; it has three more chances to answer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// A socket that takes connections.
pub(crate) enum Listener {
    Unix { listener: UnixListener, path: PathBuf, identity: (u64, u64) },
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) fn open(at: &Listen) -> Result<Self> {
        let opened = match at {
            Listen::Unix(path) => open_unix(path),
            Listen::Tcp(address) => open_tcp(*address),
        };
        opened.map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => NbdError::AddressInUse(at.to_string(), e.to_string()),
            _ => NbdError::ListenFailed(at.to_string(), e),
        })
    }

    /// Where clients find it.
    pub(crate) fn address(&self) -> io::Result<Listen> {
        match self {
            Self::Unix { path, .. } => Ok(Listen::Unix(path.clone())),
            Self::Tcp(listener) => Ok(Listen::Tcp(listener.local_addr()?)),
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Unix { listener, .. } => Ok(Socket::Unix(listener.accept()?.0)),
            Self::Tcp(listener) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
                sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_IDLE / 6)?;
                sockopt::set_tcp_keepcnt(&stream, 3)?;
                Ok(Socket::Tcp(stream))
            }
        }
    }

    /// Wakes who waits in accept, and lets nobody in any more.
    pub(crate) fn close(&self) {
        // Fails only when it was done already.
        let _ = shutdown(self.as_fd(), Shutdown::Both);
        if let Self::Unix { path, identity, .. } = self
            && identity_of(path).is_ok_and(|found| found == *identity)
        {
            // Somebody else removed it in this instant: what was wanted.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix { listener, .. } => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

fn open_tcp(address: SocketAddr) -> io::Result<Listener> {
    TcpListener::bind(address).map(Listener::Tcp)
}

fn open_unix(path: &Path) -> io::Result<Listener> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = std::fs::File::open(folder.unwrap_or(Path::new(".")))?;
    flock(&folder, FlockOperation::LockExclusive)?;
    remove_stale(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    let identity = identity_of(path)?;
    Ok(Listener::Unix { listener: socket.into(), path: path.to_path_buf(), identity })
}

/// Removes the socket file of a server that is gone.
fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !kind.is_socket() {
        return Err(in_use("a file that is no socket is there"));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
        // Connected, or its queue is full: somebody listens.
        _ => Err(in_use("a server listens there")),
    }
}

fn in_use(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, reason)
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
