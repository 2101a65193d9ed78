//! Which addresses pages may reach. Pure: an address in, a word for what is wrong with it out.
//!
//! The check is made where a connection is made, on the address it is made to: names, redirects and rebinding change nothing about it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A block of addresses, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither an address nor a network such as 10.0.0.0/8");
        let (base, bits) = text.split_once('/').unwrap_or((text, ""));
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = if bits.is_empty() { most } else { bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)? };
        Ok(Self { base, bits })
    }
}

impl Network {
    /// Whether the address is in it.
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// What a page may reach besides the public network.
#[derive(Debug, Clone, Default)]
pub struct Allowed(pub Vec<Network>);

impl Allowed {
    /// Whether a page may connect there; otherwise what kind of address it is.
    ///
    /// # Errors
    /// "loopback", "private", "link-local" and the like.
    pub fn check(&self, address: IpAddr) -> Result<(), &'static str> {
        let address = inner(address);
        match kind(address) {
            Some(kind) if !self.0.iter().any(|network| network.holds(address)) => Err(kind),
            _ => Ok(()),
        }
    }
}

/// The IPv4 address that an IPv6 address stands for, where it stands for one: mapped, compatible, NAT64 and 6to4.
fn inner(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let parts = six.segments();
    let four = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match parts {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] if six != Ipv6Addr::LOCALHOST && six != Ipv6Addr::UNSPECIFIED => four(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => four(high, low),
        [0x2002, high, low, ..] => four(high, low),
        _ => address,
    }
}

/// What is special about an address; `None`: it is public.
fn kind(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(four) => {
            let [a, b, c, _] = four.octets();
            match (a, b, c) {
                (127, ..) => Some("loopback"),
                (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("private"),
                (169, 254, _) => Some("link-local"),
                (100, 64..=127, _) => Some("shared (carrier NAT)"),
                (0, ..) => Some("unspecified"),
                (192, 0, 0) | (198, 18..=19, _) | (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => Some("reserved"),
                (224.., ..) => Some("multicast or reserved"),
                _ => None,
            }
        }
        IpAddr::V6(six) => match six.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
            [0xfc00..=0xfdff, ..] => Some("private"),
            [0xfe80..=0xfebf, ..] => Some("link-local"),
            [0xfec0..=0xfeff, ..] => Some("private"),
            // Everything that is given to anybody begins with 001; Teredo and the like, and the prefix for documents, do, too.
            [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] => Some("reserved"),
            [0x2000..=0x3fff, ..] => None,
            _ => Some("multicast or reserved"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(address: &str, allowed: &[&str]) -> Result<(), &'static str> {
        Allowed(allowed.iter().map(|text| text.parse().unwrap()).collect()).check(address.parse().unwrap())
    }

    #[test]
    fn what_is_not_public_is_refused_in_every_form() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "2001:0:1::1",
            "fec0::1",
            "64:ff9b:1::1",
            "100::1",
        ] {
            assert!(check(address, &[]).is_err(), "{address}");
        }
        for address in ["1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "2a00:1450::1", "64:ff9b::101:101"] {
            assert!(check(address, &[]).is_ok(), "{address}");
        }
    }

    #[test]
    fn what_is_allowed_is_allowed_and_nothing_beside_it() {
        assert!(check("127.0.0.1", &["127.0.0.0/8"]).is_ok());
        assert!(check("::ffff:127.0.0.1", &["127.0.0.1"]).is_ok());
        assert!(check("127.0.0.2", &["127.0.0.1"]).is_err());
        assert!(check("10.1.2.3", &["10.1.0.0/16"]).is_ok());
        assert!(check("10.2.2.3", &["10.1.0.0/16"]).is_err());
        assert!(check("::1", &["127.0.0.0/8"]).is_err());
        assert!(check("fd00::1", &["::/0"]).is_ok());
        assert!("10.0.0.0/33".parse::<Network>().is_err());
        assert!("home".parse::<Network>().is_err());
    }

    proptest! {
        #[test]
        fn an_address_in_another_form_is_judged_like_itself(bits: u32) {
            let four = Ipv4Addr::from_bits(bits);
            let plain = Allowed::default().check(four.into());
            prop_assert_eq!(Allowed::default().check(four.to_ipv6_mapped().into()), plain);
            let [a, b, c, d] = four.octets();
            let nat = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            prop_assert_eq!(Allowed::default().check(nat.into()), plain);
        }
    }
}
