//! The lower limit of the costs of a round: one connection per node by raw sockets, a fixed request, and the answer read and
//! dropped. One thread, many connections at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::Context;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::process::Cpu;

const REQUEST: &[u8] =
    b"GET /api/violations HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nConnection: close\r\n\r\n";

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    base: Ipv4Addr,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    nodes: u32,
    /// How many at a time: as many as the aggregator asks
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
}

/// A connection, and whether it has sent its request.
struct Slot {
    stream: TcpStream,
    has_asked: bool,
}

/// Prints the CPU seconds, the wall seconds and the bytes of one pass.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(options.concurrency);
    let mut slots: Vec<Option<Slot>> = Vec::new();
    slots.resize_with(options.concurrency, || None);
    let mut buffer = vec![0; 64 << 10];
    let (cpu, started) = (Cpu::of_this()?, Instant::now());
    let (mut next, mut done, mut bytes) = (0, 0, 0);
    let mut free: Vec<usize> = (0..options.concurrency).collect();
    while done < options.nodes {
        while next < options.nodes
            && let Some(token) = free.pop()
        {
            let address = Ipv4Addr::from(u32::from(options.base) + next);
            let mut stream = TcpStream::connect(SocketAddr::from((address, options.port)))?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(token), interest)?;
            *slots.get_mut(token).context("a slot")? = Some(Slot { stream, has_asked: false });
            next += 1;
        }
        poll.poll(&mut events, None)?;
        for event in &events {
            let Token(token) = event.token();
            let Some(place) = slots.get_mut(token) else { continue };
            let Some(slot) = place else { continue };
            if !slot.has_asked && event.is_writable() {
                slot.stream.write_all(REQUEST)?;
                slot.has_asked = true;
            }
            let is_over = loop {
                match slot.stream.read(&mut buffer) {
                    Ok(0) => break true,
                    Ok(n) => bytes += n,
                    Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::NotConnected => {
                        break false;
                    }
                    Err(e) => return Err(e.into()),
                }
            };
            if is_over {
                *place = None;
                free.push(token);
                done += 1;
            }
        }
    }
    println!("{:.6} {:.6} {bytes}", cpu.spent()?.as_secs_f64(), started.elapsed().as_secs_f64());
    Ok(())
}
