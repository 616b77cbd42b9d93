//! Connections to agents that cost the kernel little, because most of the CPU time of a round is spent in the kernel.

use std::io;
use std::net::{SocketAddr, TcpStream as Idle};
use std::sync::{Mutex, PoisonError};

use tokio::net::{TcpSocket, TcpStream};

/// How many idle sockets of each family are held: as many as are in use at once with the default of `collector.concurrency`. Further
/// ones are closed.
const MAX_IDLE_SOCKETS: usize = 256;

/// Makes connections and ends them. The socket of a connection that is over is used for another one. Without this, a round takes about a
/// quarter more CPU time, because each connection needs a new socket.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    v4: Mutex<Vec<Idle>>,
    v6: Mutex<Vec<Idle>>,
}

impl Sockets {
    /// A connection for one exchange.
    pub(super) async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let idle = self.idle(address).lock().unwrap_or_else(PoisonError::into_inner).pop();
        let socket = match idle {
            Some(idle) => TcpSocket::from_std_stream(idle),
            None => make(address)?,
        };
        // The request follows at once, and acknowledges the handshake, so that no empty packet is needed. A kernel without this option
        // sends that packet.
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&socket).set_tcp_quickack(false);
        socket.connect(address).await
    }

    /// Ends a connection to `address` whose exchange is over, and stores its socket for another one.
    ///
    /// `connect` with `AF_UNSPEC` ends the connection by a reset, drops received bytes that were not read, and frees the port (see
    /// connect(2)). So the next connection begins as that of a new socket.
    pub(super) fn part(&self, stream: TcpStream, address: SocketAddr) {
        // After an error, the socket is closed when it is dropped.
        let Ok(idle) = stream.into_std() else { return };
        if rustix::net::connect_unspec(&idle).is_ok() {
            let mut all = self.idle(address).lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() < MAX_IDLE_SOCKETS {
                all.push(idle);
            }
        }
    }

    fn idle(&self, address: SocketAddr) -> &Mutex<Vec<Idle>> {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

fn make(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A reset ends each connection at once. Without it, each node would leave a port in `TIME_WAIT` for a minute.
    let _ = socket.set_zero_linger();
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    impl Sockets {
        fn count(&self) -> usize {
            self.v4.lock().unwrap().len()
        }

        /// Our end and the other, which has been asked.
        async fn pair(&self, listener: &TcpListener, address: SocketAddr) -> (TcpStream, TcpStream) {
            let ask = async {
                let mut ours = self.connect(address).await.unwrap();
                ours.write_u8(b'?').await.unwrap();
                ours
            };
            let (ours, accepted) = tokio::join!(ask, listener.accept());
            let mut theirs = accepted.unwrap().0;
            assert_eq!(theirs.read_u8().await.unwrap(), b'?');
            (ours, theirs)
        }
    }

    #[tokio::test]
    async fn bytes_of_one_connection_are_never_read_by_the_next() {
        let sockets = Sockets::default();
        let ((one, first), (other, second)) = (listen().await, listen().await);
        let mut ports = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let (mut ours, mut theirs) = sockets.pair(&one, first).await;
            ports.insert(ours.local_addr().unwrap().port());
            theirs.write_all(b"answer, and further bytes").await.unwrap();
            let mut answer = [0; 6];
            ours.read_exact(&mut answer).await.unwrap();
            // It goes on while the connection ends.
            let flood = tokio::spawn(async move {
                while theirs.write_all(&[b'x'; 4096]).await.is_ok() {}
                let mut end = [0; 1];
                theirs.read(&mut end).await
            });
            tokio::task::yield_now().await;
            sockets.part(ours, first);
            assert_eq!(sockets.count(), 1);

            let (mut ours, mut theirs) = sockets.pair(&other, second).await;
            assert_eq!(sockets.count(), 0, "the same socket");
            assert_eq!(ours.peer_addr().unwrap(), second);
            theirs.write_all(b"another answer").await.unwrap();
            drop(theirs);
            let mut all = Vec::new();
            ours.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"another answer");
            sockets.part(ours, second);
            // The other side has noticed the end of the connection.
            let _ = flood.await.unwrap();
        }
        assert!(ports.len() > 50, "ports are free again: {ports:?}");
    }

    #[tokio::test]
    async fn a_socket_can_be_used_again_however_its_connection_has_ended() {
        let sockets = Sockets::default();
        let (listener, address) = listen().await;
        for by_reset in [false, true] {
            let (mut ours, theirs) = sockets.pair(&listener, address).await;
            if by_reset {
                socket2::SockRef::from(&theirs).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            }
            drop(theirs);
            let end = ours.read(&mut [0; 1]).await;
            assert_eq!(end.is_err(), by_reset);
            sockets.part(ours, address);
            assert_eq!(sockets.count(), 1);
        }
        let (mut ours, mut theirs) = sockets.pair(&listener, address).await;
        theirs.write_u8(b'x').await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'x');
        sockets.part(ours, address);
        assert_eq!(theirs.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        // One that is refused is closed.
        drop(listener);
        assert_eq!(sockets.connect(address).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(sockets.count(), 0);
    }
}
