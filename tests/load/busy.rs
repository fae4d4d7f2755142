//! Clients that make progress all the time: each repeats a request, on one connection or on a new one each time.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::http_client::REQUEST;
use crate::lab::{PATIENCE, POD};

/// A request in pieces, and the pause before each.
#[derive(Debug)]
pub struct Busy {
    name: &'static str,
    pieces: Vec<Vec<u8>>,
    pause: Duration,
}

/// What a client that makes progress has seen.
#[derive(Debug)]
pub struct Progress {
    pub name: &'static str,
    /// Responses that were received.
    pub responses: usize,
    /// Longest time in which it sent nothing, beyond its pause.
    pub silent: Duration,
    /// The error that ended its connection before it was asked to end.
    pub cut: Option<io::Error>,
}

impl Busy {
    /// Requests one after the other.
    pub fn requests() -> Busy {
        Busy {
            name: "requests",
            pieces: vec![REQUEST.into()],
            pause: Duration::from_millis(5),
        }
    }

    /// A head in three pieces. The pause is shorter than the allowance of a connection after one answer, 40 ms.
    pub fn head_in_pieces() -> Busy {
        let pieces = ["GET / HT", "TP/1.1\r\nHost: ", "pod\r\n\r\n"];
        Busy {
            name: "heads in pieces",
            pieces: pieces.map(Vec::from).into(),
            pause: Duration::from_millis(25),
        }
    }

    /// A head in three pieces, on a new connection each time. The pause is longer than the allowance of a connection
    /// without a request, 20 ms, and shorter than that of a first request while 1,000 clients wait, 40 ms.
    pub fn first_head_in_pieces() -> Busy {
        let pieces = [
            "GET / HT",
            "TP/1.1\r\nConnection: cl",
            "ose\r\nHost: pod\r\n\r\n",
        ];
        Busy {
            name: "first heads in pieces",
            pieces: pieces.map(Vec::from).into(),
            pause: Duration::from_millis(25),
        }
    }

    /// A body of 512 KiB, 256 KiB a second, in pieces of 4 KiB.
    pub fn upload() -> Busy {
        let length = 512 * 1024;
        let head = format!("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: {length}\r\n\r\n");
        let body = vec![vec![b'x'; 4096]; length / 4096];
        Busy {
            name: "uploads",
            pieces: [vec![head.into()], body].concat(),
            pause: Duration::from_micros(15_625),
        }
    }

    /// Repeats the request until `is_over`.
    pub fn run(&self, is_over: &AtomicBool) -> Progress {
        let mut progress = Progress {
            name: self.name,
            responses: 0,
            silent: Duration::ZERO,
            cut: None,
        };
        progress.cut = self.try_run(is_over, &mut progress).err();
        progress
    }

    fn try_run(&self, is_over: &AtomicBool, progress: &mut Progress) -> io::Result<()> {
        let mut stream = connect()?;
        let mut sent = Instant::now();
        while !is_over.load(Ordering::Relaxed) {
            for piece in &self.pieces {
                thread::sleep(self.pause);
                let silent = sent.elapsed().saturating_sub(self.pause);
                progress.silent = progress.silent.max(silent);
                stream.get_mut().write_all(piece)?;
                sent = Instant::now();
            }
            let is_last = read_response(&mut stream)?;
            progress.responses += 1;
            if is_last {
                stream = connect()?;
                sent = Instant::now();
            }
        }
        Ok(())
    }
}

fn connect() -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(POD)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(*PATIENCE))?;
    Ok(BufReader::new(stream))
}

/// Reads a response by its Content-Length; returns whether the connection ends with it.
pub fn read_response(stream: &mut impl BufRead) -> io::Result<bool> {
    let (mut length, mut is_last) = (0, false);
    for number in 0.. {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if number == 0 && line != "HTTP/1.1 200 OK\r\n" {
            return Err(io::Error::other(line));
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim_end().parse().unwrap();
        }
        is_last |= line == "Connection: close\r\n";
        if line == "\r\n" {
            break;
        }
    }
    match io::copy(&mut stream.take(length), &mut io::sink())? {
        read if read == length => Ok(is_last),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}
