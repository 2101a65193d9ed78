//! UDP over IPv4 and IPv6 as one socket: a real one for each family. A single one for both would show IPv4 addresses in IPv6 clothes, for which QUIC resets what
//! it learned of a path at every rebinding.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, Runtime as _, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use crate::quic;

/// One socket, or one for each family.
#[derive(Debug)]
pub struct Udp {
    first: Arc<dyn AsyncUdpSocket>,
    second: Option<Arc<dyn AsyncUdpSocket>>,
    first_is_v4: bool,
}

impl Udp {
    /// Binds an address. All of IPv4 means all of IPv6 as well, on machines that have it. Port 0 is one that is free for both.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: SocketAddr) -> io::Result<Arc<Self>> {
        const TRIES: u32 = 16;
        let mut tries = 0;
        loop {
            let first = quic::bind_udp(address)?;
            let second = twin(address, first.local_addr()?.port()).map(quic::bind_udp);
            let second = match second {
                Some(Ok(socket)) => Some(socket),
                Some(Err(error)) if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries < TRIES => {
                    tries += 1;
                    continue;
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                // No IPv6 here.
                Some(Err(_)) | None => None,
            };
            let wrap = |socket| quinn::TokioRuntime.wrap_udp_socket(socket);
            return Ok(Arc::new(Self { first: wrap(first)?, second: second.map(wrap).transpose()?, first_is_v4: address.is_ipv4() }));
        }
    }

    fn towards(&self, destination: &SocketAddr) -> Option<&Arc<dyn AsyncUdpSocket>> {
        if destination.is_ipv4() == self.first_is_v4 { Some(&self.first) } else { self.second.as_ref() }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn AsyncUdpSocket>> {
        [&self.first].into_iter().chain(&self.second)
    }
}

/// All of IPv6, where all of IPv4 is meant.
pub fn twin(address: SocketAddr, port: u16) -> Option<SocketAddr> {
    (address.ip() == Ipv4Addr::UNSPECIFIED).then(|| (Ipv6Addr::UNSPECIFIED, port).into())
}

impl AsyncUdpSocket for Udp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AllWritable(self.all().map(|socket| socket.clone().create_io_poller()).collect()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.towards(&transmit.destination).ok_or(io::ErrorKind::NetworkUnreachable)?.try_send(transmit)
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let Some(second) = &self.second else { return self.first.poll_recv(cx, bufs, meta) };
        // Half of the buffers each at most, so that neither starves the other.
        let half = bufs.len().div_ceil(2);
        let first = self.first.poll_recv(cx, &mut bufs[..half], meta);
        let received = if let Poll::Ready(Ok(received)) = first { received } else { 0 };
        if received == bufs.len() {
            return first;
        }
        match second.poll_recv(cx, &mut bufs[received..], &mut meta[received..]) {
            Poll::Ready(Ok(more)) => Poll::Ready(Ok(received + more)),
            _ if received > 0 => first,
            Poll::Pending => first,
            failed => failed,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.first.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.all().map(|socket| socket.max_transmit_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.all().map(|socket| socket.max_receive_segments()).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.all().any(|socket| socket.may_fragment())
    }
}

/// Ready when every socket below is.
#[derive(Debug)]
pub(crate) struct AllWritable(pub(crate) Vec<Pin<Box<dyn UdpPoller>>>);

impl UdpPoller for AllWritable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for poller in &mut self.0 {
            match poller.as_mut().poll_writable(cx) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }
}
