//! Which network addresses are of the public internet.
//!
//! Whoever may name an address that the server then connects to could aim it at the owner's network. A name proves
//! nothing: it has to be resolved, what it resolved to has to be judged, and that very address has to be connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address is one of the public internet. Addresses that carry an IPv4 address inside are judged by it.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let special = match ip.octets() {
        // This network, private, loopback; multicast, reserved and broadcast.
        [0 | 10 | 127 | 224..=255, ..] => true,
        // Shared between carriers and their customers (CGNAT).
        [100, 64..=127, ..] => true,
        // Link-local, which is where clouds keep their metadata service.
        [169, 254, ..] => true,
        [172, 16..=31, ..] => true,
        [192, 168, ..] => true,
        // Protocol assignments, documentation, and the retired 6to4 relay.
        [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [192, 88, 99, _] => true,
        // Benchmarks of network devices.
        [198, 18 | 19, ..] => true,
        _ => false,
    };
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // NAT64: the network turns it into the IPv4 address at its end.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
        // 6to4 leads to the IPv4 address in its second and third group.
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, benchmarks and the other protocol assignments; documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // An allow-list: outside 2000::/3 nothing is assigned to the public, so loopback, unspecified, link-local,
        // unique-local, multicast and whatever comes next are refused without being named.
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        let special = "0.0.0.0 10.1.2.3 127.0.0.1 127.9.9.9 100.64.0.1 100.127.255.255 169.254.169.254 172.16.0.1 \
            172.31.255.255 192.168.1.1 192.0.0.8 192.0.2.1 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.7 \
            192.88.99.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 \
            :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 \
            64:ff9b::a00:1 64:ff9b:1::808:808 2002:7f00:1:: 2002:a00:1::1 2001::1 2001:2::1 2001:db8::1 3fff::1 \
            fe80::1 febf::1 fec0::1 fc00::1 fd12::1 ff02::1 100::1 5f00::1 4000::1";
        for text in special.split_whitespace() {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_public() {
        let public = "1.1.1.1 8.8.8.8 100.63.0.1 100.128.0.1 172.15.0.1 172.32.0.1 192.0.1.1 223.255.0.1 \
            2606:4700::1111 2001:4860:4860::8888 2001:200::1 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1";
        for text in public.split_whitespace() {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
