// SPDX-License-Identifier: GPL-2.0

//! The descriptors and memory that the threads share, and what a thread does with them.

use crate::args;
use crate::family;
use crate::faults;
use crate::rng::Rng;
use crate::Counts;
use kvm_bindings::kvm_run;
use rkvm_l1::env;
use rkvm_l1::sys::{self, On, IOCTLS};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

/// Ends a KVM_RUN now and then.
pub const KICK: i32 = libc::SIGUSR1;
/// The same when nothing goes on any more.
pub const STUCK: i32 = libc::SIGUSR2;

/// VMs a thread has at a time, and vCPUs each.
const VMS: usize = 2;
const CPUS: usize = 3;
/// Devices of a VM that have descriptors.
const DEVICES: usize = 3;
/// Words of a thread's buffer for arguments.
pub const BUFFER: usize = 8192;
/// Guest memory of a VM slot; as much again and more is kept free of other mappings behind it, for slots larger than it.
pub const ARENA: usize = 4 << 20;
const RESERVED: usize = 64 << 20;
const EVENTS: usize = 8;
/// One ioctl in so many has memory refused to it, where the kernel can do that.
const FAULT_EVERY: u64 = 6;

/// One VM, or none. Descriptors are -1 when there is none; threads use and close each other's.
pub struct Slot {
    vm: AtomicI32,
    cpus: [AtomicI32; CPUS],
    devices: [AtomicI32; DEVICES],
    /// Their run pages; 0 is none.
    pages: [AtomicUsize; CPUS],
    /// [`ARENA`] bytes, from here.
    pub arena: usize,
}

/// All that is shared.
pub struct World {
    slots: Vec<Slot>,
    system: OwnedFd,
    /// Eventfds for irqfds and ioeventfds.
    pub events: Vec<RawFd>,
    /// What the family knows of this host.
    pub facts: family::Facts,
    page_size: usize,
}

fn map(at: usize, len: usize, prot: i32, flags: i32) -> usize {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: either a new place, or one within an arena of ours.
    let p = unsafe { libc::mmap(at as *mut _, len, prot, flags, -1, 0) };
    assert!(p != libc::MAP_FAILED, "mmap");
    p as usize
}

impl World {
    /// Nothing open but the device.
    pub fn new(threads: usize) -> World {
        let kvm = rkvm_l1::kvm();
        let facts = family::Facts::new(&kvm);
        let page_size = kvm.get_vcpu_mmap_size().unwrap_or(4096);
        let slots = (0..threads * VMS)
            .map(|_| {
                let arena = map(0, RESERVED, libc::PROT_NONE, 0);
                map(
                    arena,
                    ARENA,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_FIXED,
                );
                Slot {
                    vm: AtomicI32::new(-1),
                    cpus: std::array::from_fn(|_| AtomicI32::new(-1)),
                    devices: std::array::from_fn(|_| AtomicI32::new(-1)),
                    pages: std::array::from_fn(|_| AtomicUsize::new(0)),
                    arena,
                }
            })
            .collect();
        // SAFETY: no pointers.
        let events = (0..EVENTS)
            .map(|_| unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) })
            .collect();
        let path = env().device.to_str().expect("UTF-8");
        let system = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .expect("the device")
            .into();
        World {
            slots,
            system,
            events,
            facts,
            page_size,
        }
    }
}

fn close(fd: RawFd) {
    if fd >= 0 {
        // SAFETY: a descriptor of a slot, which has been taken out of it.
        unsafe { libc::close(fd) };
    }
}

impl Slot {
    fn close_cpu(&self, i: usize, size: usize) {
        self.put_cpu(i, -1, 0, size);
    }

    /// Has another vCPU, or none, in this place.
    fn put_cpu(&self, i: usize, fd: RawFd, page: usize, size: usize) {
        close(self.cpus[i].swap(fd, Ordering::AcqRel));
        let page = self.pages[i].swap(page, Ordering::AcqRel);
        // Run pages stay mapped until the end: another thread may be about to write to one.
        if page != 0 {
            // SAFETY: our own mapping; contents are dropped, the address stays.
            unsafe {
                libc::mmap(
                    page as *mut _,
                    size,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            USED.lock().expect("not poisoned").push(page);
        }
    }

    fn close_all(&self, size: usize, vm_first: bool) {
        if vm_first {
            close(self.vm.swap(-1, Ordering::AcqRel));
        }
        for i in 0..CPUS {
            self.close_cpu(i, size);
        }
        for d in &self.devices {
            close(d.swap(-1, Ordering::AcqRel));
        }
        close(self.vm.swap(-1, Ordering::AcqRel));
    }
}

/// Where run pages were. Nothing is mapped there again: if that failed, a hole would be left, and others find room in it.
static USED: std::sync::Mutex<Vec<usize>> = std::sync::Mutex::new(Vec::new());

impl Drop for World {
    fn drop(&mut self) {
        for s in &self.slots {
            s.close_all(self.page_size, false);
            // SAFETY: no thread and no VM uses it any more.
            unsafe { libc::munmap(s.arena as *mut _, RESERVED) };
        }
        for e in &self.events {
            close(*e);
        }
        for p in USED.lock().expect("not poisoned").drain(..) {
            // SAFETY: as above.
            unsafe { libc::munmap(p as *mut _, self.page_size) };
        }
    }
}

/// One thread.
pub struct Worker<'a> {
    world: &'a World,
    counts: &'a Counts,
    number: usize,
    rng: Rng,
    faults: Option<faults::Nth>,
    timer: Option<Timer>,
    buf: Box<[u64; BUFFER]>,
}

/// Interrupts all threads' system calls.
pub fn kick_all() {
    for t in std::fs::read_dir("/proc/self/task").into_iter().flatten() {
        let tid = t.ok().and_then(|t| t.file_name().to_str()?.parse().ok());
        if let Some(tid) = tid.filter(|t| *t != sys::tid()) {
            sys::kick(tid, STUCK);
        }
    }
}

/// A timer whose signal ends KVM_RUN.
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> Timer {
        sys::catch(KICK);
        sys::catch(STUCK);
        // SAFETY: whole structures of ours; the signal goes to this thread.
        unsafe {
            let mut e: libc::sigevent = std::mem::zeroed();
            e.sigev_notify = libc::SIGEV_THREAD_ID;
            e.sigev_signo = KICK;
            e.sigev_notify_thread_id = sys::tid();
            let mut t: libc::timer_t = std::mem::zeroed();
            assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut e, &mut t), 0);
            Timer(t)
        }
    }

    /// Fires soon and then again and again, or no more.
    fn set(&self, on: bool) {
        let ms = |n: i64| libc::timespec {
            tv_sec: 0,
            tv_nsec: if on { n * 1_000_000 } else { 0 },
        };
        let times = libc::itimerspec {
            it_interval: ms(20),
            it_value: ms(8),
        };
        // SAFETY: our own timer, and a whole structure.
        unsafe { libc::timer_settime(self.0, 0, &times, std::ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: our own timer.
        unsafe { libc::timer_delete(self.0) };
    }
}

impl<'a> Worker<'a> {
    /// Thread `number`.
    pub fn new(world: &'a World, counts: &'a Counts, number: usize, seed: u64) -> Worker<'a> {
        let rng = Rng::new(seed.wrapping_add(number as u64 * 0x1_0001));
        Worker {
            world,
            counts,
            number,
            rng,
            faults: None,
            timer: None,
            buf: Box::new([0; BUFFER]),
        }
    }

    /// Makes `n` ioctls.
    pub fn work(mut self, n: u64, stop: &AtomicBool) {
        self.timer = Some(Timer::new());
        self.faults = faults::Nth::open();
        let mut done = 0;
        while done < n && !stop.load(Ordering::Relaxed) {
            done += self.step();
        }
        for i in 0..VMS {
            self.world.slots[self.number * VMS + i]
                .close_all(self.world.page_size, self.rng.one_in(2));
        }
    }

    fn slot(&mut self) -> &'a Slot {
        let thread = if self.rng.one_in(6) {
            self.rng.below((self.world.slots.len() / VMS) as u64) as usize
        } else {
            self.number
        };
        &self.world.slots[thread * VMS + self.rng.below(VMS as u64) as usize]
    }

    /// Does one thing; returns how many ioctls that was.
    fn step(&mut self) -> u64 {
        let slot = self.slot();
        match self.rng.below(200) {
            0 => {
                slot.close_all(self.world.page_size, self.rng.one_in(2));
                0
            }
            1 => {
                let i = self.rng.below(CPUS as u64) as usize;
                slot.close_cpu(i, self.world.page_size);
                0
            }
            2..=7 => {
                self.disturb(slot);
                0
            }
            8..=11 => {
                self.prepare(slot);
                0
            }
            12..=19 => {
                // SAFETY: an eventfd of ours takes eight bytes.
                unsafe {
                    libc::write(
                        self.rng.pick(&self.world.events),
                        (&raw const ONE).cast(),
                        8,
                    )
                };
                0
            }
            20..=79 => self.run(slot),
            _ => self.ioctl(slot),
        }
    }

    fn call(&mut self, ioctl: usize, fd: RawFd, arg: u64) -> Result<i32, i32> {
        let code = IOCTLS[ioctl].code;
        let nth = self
            .faults
            .as_ref()
            .filter(|_| self.rng.one_in(FAULT_EVERY));
        let nth = nth.filter(|f| f.arm(1 + self.rng.below(24), fd, code == sys::RUN));
        // SAFETY: the argument is a number, an address where nothing is, or the buffer, which is larger than what any writes.
        let r = unsafe { sys::ioctl(fd, code, arg) };
        if let Some(f) = nth {
            f.disarm();
        }
        self.counts.add(ioctl, r);
        r
    }

    fn ioctl(&mut self, slot: &'a Slot) -> u64 {
        if slot.vm.load(Ordering::Acquire) < 0 && !self.rng.one_in(20) {
            return self.create(slot);
        }
        let i = self.rng.below(IOCTLS.len() as u64) as usize;
        let on = if self.rng.one_in(64) {
            self.rng.pick(&[On::Sys, On::Vm, On::Vcpu])
        } else {
            IOCTLS[i].on
        };
        let cpu = self.rng.below(CPUS as u64) as usize;
        // Each kind of descriptor has attributes.
        let attribute = matches!(
            IOCTLS[i].code,
            sys::SET_DEVICE_ATTR | sys::GET_DEVICE_ATTR | sys::HAS_DEVICE_ATTR
        );
        let device = self.rng.below(2 * DEVICES as u64) as usize;
        let device = slot.devices.get(device).filter(|_| attribute);
        let device = device.map_or(-1, |d| d.load(Ordering::Acquire));
        let fd = match on {
            _ if device >= 0 => device,
            _ if attribute && self.rng.one_in(4) => slot.vm.load(Ordering::Acquire),
            On::Sys => self.world.system.as_raw_fd(),
            On::Vm => slot.vm.load(Ordering::Acquire),
            On::Vcpu => slot.cpus[cpu].load(Ordering::Acquire),
        };
        if IOCTLS[i].code == sys::RUN {
            return self.run(slot);
        }
        if fd < 0 {
            return if on == On::Vcpu {
                self.create_cpu(slot, cpu)
            } else {
                0
            };
        }
        let of = (device >= 0).then(|| {
            let is = |d: &AtomicI32| d.load(Ordering::Relaxed) == device;
            slot.devices.iter().position(is).unwrap_or(0)
        });
        let target = args::Target { slot, device: of };
        let arg = args::fill(
            &IOCTLS[i],
            &mut self.rng,
            &mut self.buf,
            self.world,
            &target,
        );
        let r = self.call(i, fd, arg);
        // What makes a descriptor: keep it or close it.
        match (IOCTLS[i].code, r) {
            (code, Ok(new)) if family::MAKERS.contains(&code) => close(new),
            (sys::CREATE_DEVICE, Ok(_)) if self.buf[0] & 0xffff_ffff_0000_0000 != 0 => {
                let fd = (self.buf[0] >> 32) as i32;
                // The test flag makes none.
                if self.buf[1] & 1 == 0
                    && fd > 2
                    && !self.world.events.contains(&fd)
                    && fd != self.world.system.as_raw_fd()
                {
                    let of = self.rng.pick(&slot.devices.each_ref());
                    close(of.swap(fd, Ordering::AcqRel));
                }
            }
            _ => {}
        }
        1
    }

    fn index(code: u32) -> usize {
        IOCTLS
            .iter()
            .position(|i| i.code == code)
            .expect("in the table")
    }

    fn create(&mut self, slot: &'a Slot) -> u64 {
        let fd = self.world.system.as_raw_fd();
        let Ok(vm) = self.call(Self::index(sys::CREATE_VM), fd, 0) else {
            return 1;
        };
        // As a VMM would, but for now and then.
        if !self.rng.one_in(4) {
            family::new_vm(vm);
        }
        if !self.rng.one_in(8) {
            let mut r = kvm_bindings::kvm_userspace_memory_region {
                guest_phys_addr: family::RAM,
                memory_size: ARENA as u64 / 2,
                userspace_addr: slot.arena as u64,
                ..Default::default()
            };
            let _ = sys::with(vm, sys::SET_USER_MEMORY_REGION, &mut r);
        }
        close(slot.vm.swap(vm, Ordering::AcqRel));
        if self.rng.one_in(8) {
            return 1;
        }
        let made: u64 = (0..CPUS).map(|i| self.create_cpu(slot, i)).sum();
        let devices = family::devices(&mut self.rng, vm, slot);
        for (fd, of) in devices.into_iter().zip(&slot.devices) {
            close(of.swap(fd, Ordering::AcqRel));
        }
        1 + made
    }

    fn create_cpu(&mut self, slot: &'a Slot, i: usize) -> u64 {
        let vm = slot.vm.load(Ordering::Acquire);
        if vm < 0 {
            return 0;
        }
        let id = match self.rng.below(8) {
            0 => self.rng.below(family::MAX_VCPU_ID),
            1 => i as u64 + CPUS as u64 * self.rng.below(20),
            _ => i as u64,
        };
        let fd = match self.call(Self::index(sys::CREATE_VCPU), vm, id) {
            Ok(fd) => fd,
            Err(e) => {
                // It has no room for more, or had this one: a new VM is of more use.
                if matches!(e, libc::EBUSY | libc::EEXIST) && self.rng.one_in(8) {
                    slot.close_all(self.world.page_size, self.rng.one_in(2));
                }
                return 1;
            }
        };
        let size = self.world.page_size;
        // SAFETY: a new place.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            close(fd);
            return 1;
        }
        if !self.rng.one_in(8) {
            family::new_cpu(&mut self.rng, fd, self.world);
        }
        slot.put_cpu(i, fd, page as usize, size);
        1
    }

    /// Puts a vCPU into a mode with code to run, as a VMM does; registers are sometimes odd.
    fn prepare(&mut self, slot: &'a Slot) {
        let i = self.rng.below(CPUS as u64) as usize;
        let fd = slot.cpus[i].load(Ordering::Acquire);
        if fd < 0 {
            return;
        }
        family::prepare(&mut self.rng, slot, i, fd, self.world);
    }

    fn run(&mut self, slot: &'a Slot) -> u64 {
        let i = self.rng.below(CPUS as u64) as usize;
        let (fd, page) = (
            slot.cpus[i].load(Ordering::Acquire),
            slot.pages[i].load(Ordering::Acquire),
        );
        if fd < 0 || page == 0 {
            return self.create_cpu(slot, i);
        }
        // SAFETY: run pages' addresses stay mapped until the end.
        unsafe {
            let run = page as *mut kvm_run;
            (&raw mut (*run).immediate_exit).write_volatile(u8::from(self.rng.one_in(3)));
            family::scribble(&mut self.rng, run);
            if self.rng.one_in(16) {
                // Answers to reads, or nonsense where the kernel must not trust it.
                let at = self.rng.below(2048) as usize;
                (run.cast::<u8>().add(at)).write_volatile(self.rng.next() as u8);
            }
        }
        // Signals cost more than what they interrupt, in an emulator.
        self.timer.iter().for_each(|t| t.set(true));
        let mut n = 0;
        for _ in 0..=self.rng.below(6) {
            n += 1;
            if self.call(Self::index(sys::RUN), fd, 0).is_err() {
                break;
            }
        }
        self.timer.iter().for_each(|t| t.set(false));
        n
    }

    /// Changes the memory under a VM.
    fn disturb(&mut self, slot: &'a Slot) {
        let page = self.rng.below(ARENA as u64 / 4096) as usize;
        let n = 1 + self.rng.below(64) as usize;
        let len = 4096 * n.min(ARENA / 4096 - page);
        let at = slot.arena + 4096 * page;
        let p = at as *mut libc::c_void;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: only guest memory in an arena of ours is touched.
        unsafe {
            match self.rng.below(11) {
                0 => drop(map(at, len, libc::PROT_NONE, libc::MAP_FIXED)),
                1..=3 => drop(map(at, len, rw, libc::MAP_FIXED)),
                4 => drop(libc::mprotect(p, len, libc::PROT_READ)),
                5 => drop(libc::mprotect(p, len, rw)),
                6 => drop(libc::madvise(p, len, libc::MADV_DONTNEED)),
                7 => drop(libc::madvise(
                    p,
                    len,
                    self.rng.pick(&[
                        libc::MADV_HUGEPAGE,
                        libc::MADV_NOHUGEPAGE,
                        libc::MADV_MERGEABLE,
                    ]),
                )),
                8 => drop(libc::madvise(
                    p,
                    len,
                    self.rng
                        .pick(&[libc::MADV_PAGEOUT, libc::MADV_COLD, libc::MADV_FREE]),
                )),
                9 => self.fork(slot),
                _ => drop(map(slot.arena, ARENA, rw, libc::MAP_FIXED)),
            }
        }
    }

    /// A child has copies of all memory and descriptors, and may do nothing with them.
    fn fork(&mut self, slot: &'a Slot) {
        let vm = slot.vm.load(Ordering::Acquire);
        let cpu = self.rng.pick(&slot.cpus.each_ref()).load(Ordering::Acquire);
        // SAFETY: the child makes system calls only.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                let mut region = kvm_bindings::kvm_userspace_memory_region::default();
                let strange = [
                    vm < 0 || sys::with(vm, sys::SET_USER_MEMORY_REGION, &mut region).is_err(),
                    cpu < 0 || sys::call(cpu, sys::RUN, 0).is_err(),
                ];
                libc::_exit(i32::from(strange.contains(&false)));
            }
            let mut status = 0;
            while pid > 0 && libc::waitpid(pid, &mut status, 0) < 0 && sys::errno() == libc::EINTR {
            }
            assert!(status == 0, "a child may use its parent's VM: {status:#x}");
        }
    }
}

static ONE: u64 = 1;
