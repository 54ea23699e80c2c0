//! The instance type, id and region from EC2's instance metadata service, asked only when the user says so.
//!
//! IMDSv2: a token by `PUT /latest/api/token`, then `GET /latest/meta-data/…` with it (AWS, "Use the Instance Metadata
//! Service"). The address is link-local and answers at once or never, hence the short limits.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use dhc_thresholds::Identity;

const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 254), 80);
const LIMIT: Duration = Duration::from_secs(2);

/// The largest answer that is read; real ones have fewer than a hundred bytes.
const ANSWER_MAX: u64 = 4096;

/// Fills in what the service tells; leaves everything else as it is.
pub fn ask(identity: &mut Identity) {
    let Some(token) = request(
        "PUT",
        "api/token",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
    ) else {
        return;
    };
    let header = format!("X-aws-ec2-metadata-token: {token}");
    let get = |what: &str| request("GET", &format!("meta-data/{what}"), &header);
    if let Some(instance_type) = get("instance-type") {
        identity.instance_type = Some(instance_type);
        identity.instance_type_from = Some("instance metadata service".to_owned());
    }
    if identity.instance_id.is_none() {
        identity.instance_id = get("instance-id");
    }
    if identity.region.is_none() {
        identity.region = get("placement/region");
    }
}

/// One request; the answer's body if it is a success and a single plain word.
fn request(method: &str, path: &str, header: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(ADDRESS), LIMIT).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.set_write_timeout(Some(LIMIT)).ok()?;
    let host = ADDRESS.0;
    let request = format!(
        "{method} /latest/{path} HTTP/1.1\r\nHost: {host}\r\n{header}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer).ok()?;
    word_of(&answer)
}

fn word_of(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let success = head.split_whitespace().nth(1) == Some("200");
    let body = body.trim();
    let plain = !body.is_empty() && body.bytes().all(|byte| byte.is_ascii_graphic());
    (success && plain).then(|| body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::word_of;

    #[test]
    fn only_a_success_with_a_single_word_is_an_answer() {
        assert_eq!(
            word_of("HTTP/1.1 200 OK\r\nServer: EC2ws\r\n\r\np5.48xlarge").as_deref(),
            Some("p5.48xlarge")
        );
        assert_eq!(word_of("HTTP/1.1 404 Not Found\r\n\r\np5.48xlarge"), None);
        assert_eq!(
            word_of("HTTP/1.1 200 OK\r\n\r\n<html> a proxy's page"),
            None
        );
        assert_eq!(word_of("HTTP/1.1 200 OK\r\n\r\n"), None);
    }
}
