//! A device whose flash is in memory, driven by the crate embedded-update as it is published.
//!
//! Arguments: host:port, user, password, running version, file for what was written, `named` or `packed` statuses,
//! and `boots` or `reverts`: what happens after a swap. It says what it is told, a line each, and ends when it is in
//! sync, or at the third wait. The answers are read and nothing is checked: tests/interop/test_devices.py does.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use embedded_update::{
    Command, DeviceStatus, FirmwareDevice, FirmwareStatus, FirmwareUpdater, Status, UpdateService, UpdaterConfig,
};

/// The updater asks for this pause beside every request; all other pauses are to be over at once.
const TIMEOUT_MS: u32 = 15_001;
const WAITS_MAX: u32 = 3;

struct NoPauses;

impl embedded_hal_async::delay::DelayUs for NoPauses {
    async fn delay_us(&mut self, _us: u32) {}

    async fn delay_ms(&mut self, ms: u32) {
        if ms == TIMEOUT_MS {
            std::future::pending::<()>().await;
        }
    }
}

struct Http {
    stream: BufReader<TcpStream>,
    host: String,
    authorization: String,
    packed: bool,
    answer: Vec<u8>,
    waits: u32,
}

impl Http {
    fn post(&mut self, body: &[u8]) -> std::io::Result<()> {
        let head = format!(
            "POST /v1/dfu?ct=30 HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic {}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            self.authorization,
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let (mut line, mut size, mut command) = (String::new(), 0, String::new());
        self.stream.read_line(&mut line)?;
        let code = line.split(' ').nth(1).unwrap_or("").to_string();
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => size = value.parse().unwrap_or(0),
                "command" => command = value.to_string(),
                _ => {}
            }
        }
        self.answer.resize(size, 0);
        self.stream.read_exact(&mut self.answer)?;
        if code != "200" || command != "dfu" {
            println!("answered {code} {command}");
        }
        Ok(())
    }
}

impl UpdateService for Http {
    type Error = String;

    async fn request<'m>(&'m mut self, status: &'m Status<'m>) -> Result<Command<'m>, String> {
        let body = if self.packed {
            serde_cbor::ser::to_vec_packed(status)
        } else {
            serde_cbor::to_vec(status)
        };
        let body = body.map_err(|e| e.to_string())?;
        self.post(&body).map_err(|e| e.to_string())?;
        let command = serde_cbor::from_slice(&self.answer).map_err(|e| e.to_string())?;
        if let Command::Wait { poll, .. } = command {
            println!("wait {poll:?}");
            self.waits += 1;
            if self.waits == WAITS_MAX {
                std::process::exit(0);
            }
        }
        Ok(command)
    }
}

struct Device {
    version: Vec<u8>,
    flash: Vec<u8>,
    file: String,
}

impl FirmwareDevice for Device {
    const MTU: usize = 256;
    type Version = Vec<u8>;
    type Error = String;

    async fn status(&mut self) -> Result<FirmwareStatus<Vec<u8>>, String> {
        Ok(FirmwareStatus {
            current_version: self.version.clone(),
            next_offset: 0,
            next_version: None,
        })
    }

    async fn start(&mut self, version: &[u8]) -> Result<(), String> {
        println!("start {}", String::from_utf8_lossy(version));
        self.flash.clear();
        Ok(())
    }

    async fn write(&mut self, offset: u32, data: &[u8]) -> Result<(), String> {
        if offset as usize != self.flash.len() || data.len() > Self::MTU || data.is_empty() {
            return Err(format!("write of {} at {offset}, has {}", data.len(), self.flash.len()));
        }
        self.flash.extend_from_slice(data);
        Ok(())
    }

    async fn update(&mut self, version: &[u8], checksum: &[u8]) -> Result<(), String> {
        std::fs::write(&self.file, &self.flash).map_err(|e| e.to_string())?;
        let hex = checksum.iter().fold(String::new(), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        });
        println!("swap {} {hex}", String::from_utf8_lossy(version));
        self.version = version.to_vec();
        Ok(())
    }

    async fn synced(&mut self) -> Result<(), String> {
        println!("synced {}", String::from_utf8_lossy(&self.version));
        Ok(())
    }
}

fn base64(data: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in data.chunks(3) {
        let bits = part.iter().fold(0u32, |all, &byte| all << 8 | u32::from(byte)) << (8 * (3 - part.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= part.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, user, password, version, file, form, after] = &arguments[..] else {
        eprintln!("expected: host:port user password version file named|packed boots|reverts");
        std::process::exit(2);
    };
    let service = Http {
        stream: BufReader::new(TcpStream::connect(host).expect("a connection to dfud")),
        host: host.clone(),
        authorization: base64(format!("{user}:{password}").as_bytes()),
        packed: form == "packed",
        answer: Vec::new(),
        waits: 0,
    };
    let mut updater = FirmwareUpdater::new(service, UpdaterConfig { timeout_ms: TIMEOUT_MS, backoff_ms: 0 });
    let mut device = Device { version: version.clone().into_bytes(), flash: Vec::new(), file: file.clone() };
    futures::executor::block_on(async {
        loop {
            match updater.run(&mut device, &mut NoPauses).await.expect("an update") {
                DeviceStatus::Synced(poll) => {
                    println!("poll {poll:?}");
                    return;
                }
                DeviceStatus::Updated if after == "reverts" => device.version = version.clone().into_bytes(),
                DeviceStatus::Updated => {}
            }
        }
    });
}
