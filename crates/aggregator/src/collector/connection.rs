//! Connections to agents that cost the kernel little, because most of the CPU time of a round is spent in the kernel.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

/// A connection to `address` for one exchange. It ends by a reset when it is dropped.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A reset ends the connection at once. Without it, each node would leave a port in `TIME_WAIT` for a minute.
    let _ = socket.set_zero_linger();
    // The request follows at once, and acknowledges the handshake, so that no empty packet is needed. A kernel without this option
    // sends that packet.
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(&socket).set_tcp_quickack(false);
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_dropped_ends_by_a_reset() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(address).await else { continue };
            let address = listener.local_addr().unwrap();
            let (ours, accepted) = tokio::join!(connect(address), listener.accept());
            let (mut ours, mut theirs) = (ours.unwrap(), accepted.unwrap().0);
            ours.write_u8(b'?').await.unwrap();
            assert_eq!(theirs.read_u8().await.unwrap(), b'?');
            theirs.write_u8(b'!').await.unwrap();
            assert_eq!(ours.read_u8().await.unwrap(), b'!');
            drop(ours);
            assert_eq!(theirs.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            drop(listener);
            assert_eq!(connect(address).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    }
}
