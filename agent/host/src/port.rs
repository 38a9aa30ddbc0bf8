//! Who holds a UDP port of this host, as far as it can be seen.

use std::{fs, path::Path};

use crate::wireguard;

/// The holder of a UDP port, in words; `None` where nobody is seen.
pub fn holder(port: u16) -> Option<String> {
    if let Some((name, _)) = wireguard::other_ports().into_iter().find(|(_, other)| *other == port) {
        return Some(format!("the WireGuard device {name} (wg show {name})"));
    }
    // Not /proc/net: that is of the process's first thread, which may be in another network namespace.
    let tables = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
    let socket = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|table| find(&table, port))?;
    Some(process(&socket.inode).unwrap_or(match socket.inode.as_str() {
        "0" => "a socket of the kernel".to_owned(),
        _ => format!("a process of user {} that is not visible here", socket.user),
    }))
}

#[derive(Debug, PartialEq, Eq)]
struct UdpSocket {
    user: String,
    inode: String,
}

/// The first socket on a port in a table of /proc/net/udp (proc_pid_net(5)): the second field is the local address and
/// port in hexadecimal, the eighth the user, the tenth the inode.
fn find(table: &str, port: u16) -> Option<UdpSocket> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let here = u16::from_str_radix(local, 16) == Ok(port);
        here.then_some(UdpSocket { user: (*fields.get(7)?).to_owned(), inode: (*fields.get(9)?).to_owned() })
    })
}

fn process(inode: &str) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(entry.path().join("fd")).ok()?.filter_map(Result::ok);
        files.any(|file| fs::read_link(file.path()).is_ok_and(|to| to == Path::new(&wanted))).then(|| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            format!("{} (process {pid})", name.trim_end())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_the_kernel_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     90: 0100007F:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 12345 2 0";
        let socket = UdpSocket { user: "1000".to_owned(), inode: "12345".to_owned() };
        assert_eq!(find(table, 51820), Some(socket));
        assert_eq!(find(table, 51821), None);
        assert_eq!(find("", 1), None);
    }
}
