//! The addresses that this machine sends from, and the moment in which they change: somebody has carried it to another network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link;

/// Waits until this machine would send from another address than when this was called.
pub(crate) async fn changed() {
    let news = News::listen(); // before the look: what changes after it is told
    let before = own();
    while own() == before {
        news.next().await;
    }
}

/// What the kernel would send from, to anywhere on the internet; no packet leaves for that.
fn own() -> [Option<IpAddr>; 2] {
    // Addresses for documentation: nobody has them, and routes lead there as to anybody.
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    [link::own_address(&(v4, 9).into()), link::own_address(&(v6, 9).into())]
}

/// What the kernel tells of links, addresses and routes.
struct News {
    #[cfg(target_os = "linux")]
    kernel: Option<crate::kernel::News>,
}

impl News {
    /// How often it is looked where the kernel tells nothing.
    const LOOK: std::time::Duration = std::time::Duration::from_secs(5);

    #[cfg(target_os = "linux")]
    fn listen() -> Self {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, socket_with};
        /// `RTMGRP_LINK`, and `_IFADDR` and `_ROUTE` of IPv4 and IPv6 (linux/rtnetlink.h).
        const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
        let open = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
            crate::kernel::News::of(socket)
        };
        let kernel = open().inspect_err(|error| tracing::debug!(%error, "the kernel does not tell of new addresses")).ok();
        Self { kernel }
    }

    #[cfg(not(target_os = "linux"))]
    fn listen() -> Self {
        Self {}
    }

    /// Waits for something to be different, which may be something else.
    async fn next(&self) {
        #[cfg(target_os = "linux")]
        if let Some(kernel) = &self.kernel {
            return kernel.next().await;
        }
        tokio::time::sleep(Self::LOOK).await;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_tells_of_addresses_and_nobody_looks_in_between() {
        assert!(News::listen().kernel.is_some());
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), changed()).await.is_err(), "nothing has changed");
    }
}
