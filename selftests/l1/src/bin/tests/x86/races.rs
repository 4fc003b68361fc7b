// SPDX-License-Identifier: GPL-2.0

//! Things done at the same time, and processes that end in the middle.

use crate::harness::tests;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use rkvm_l1::kit::{self, CODE};
use rkvm_l1::machine::split;
use rkvm_l1::ram::Ram;
use rkvm_l1::sys::{self, in_child};
use rkvm_l1::{skip, Exit, Irqchip, Machine, Mode, Outcome};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

tests![
    two_threads_one_vcpu,
    ioctls_while_running,
    signal_ends_run,
    signal_ends_run_after_a_refused_entry,
    immediate_exit,
    immediate_exit_completes_io,
    signal_mask,
    hlt_is_interrupted,
    slots_change_while_running,
    munmap_while_running,
    routes_change_while_signalled,
    irqfd_races_with_vm_close,
    vcpus_created_while_running,
    killed_while_running,
    killed_with_many_vcpus,
    thread_exits_while_others_run,
    descriptors_closed_while_running,
    exec_while_running,
    migrates_between_cpus,
    cpu_hotplug,
    vm_churn,
];

/// A guest that spins for ever.
fn spinner(cpus: usize) -> Machine {
    let m = Machine::with(Mode::Long, Irqchip::Split, cpus);
    m.code(CODE, 64, |a| {
        let mut again = a.create_label();
        kit::spins(a)?;
        a.set_label(&mut again)?;
        a.inc(qword_ptr(kit::DATA))?;
        a.jmp(again)
    })
    .expect("code");
    m
}

fn ms(n: u64) {
    std::thread::sleep(Duration::from_millis(n));
}

/// Ends the KVM_RUN of a thread: signals it until `done`.
fn stop(tid: &AtomicI32, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        let t = tid.load(Ordering::Acquire);
        if t != 0 {
            sys::kick(t, libc::SIGUSR1);
        }
        ms(1);
    }
}

fn two_threads_one_vcpu() -> Outcome {
    sys::catch(libc::SIGUSR1);
    let m = Machine::new(Mode::Long, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.out(0x50, al)?;
        a.inc(qword_ptr(kit::DATA))?;
        a.jmp(again)
    })?;
    let fd = m.cpus[0].raw();
    let exits = AtomicU32::new(0);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for _ in 0..500 {
                    // One waits while the other runs.
                    assert_eq!(sys::call(fd, sys::RUN, 0), Ok(0));
                    exits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    // Each exit is one turn of the loop.
    assert_eq!(exits.into_inner(), 1000);
    assert_eq!(m.ram.u64(kit::DATA), 999);
    Ok(())
}

fn ioctls_while_running() -> Outcome {
    sys::catch(libc::SIGUSR1);
    let m = spinner(1);
    let fd = m.cpus[0].raw();
    let (tid, done) = (AtomicI32::new(0), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            tid.store(sys::tid(), Ordering::Release);
            for _ in 0..20 {
                assert_eq!(sys::call(fd, sys::RUN, 0), Err(libc::EINTR));
            }
            done.store(true, Ordering::Release);
        });
        s.spawn(|| {
            let mut clock = kvm_clock_data::default();
            while !done.load(Ordering::Acquire) {
                // Of the VM: at once. Of the vCPU: when it is out.
                assert_eq!(sys::with(m.raw(), sys::GET_CLOCK, &mut clock), Ok(0));
                let mut regs = kvm_regs::default();
                assert!(matches!(
                    sys::with(fd, sys::GET_REGS, &mut regs),
                    Ok(0) | Err(libc::EINTR)
                ));
                assert!(done.load(Ordering::Acquire) || (CODE..CODE + 0x100).contains(&regs.rip));
            }
        });
        ms(50);
        stop(&tid, &done);
    });
    Ok(())
}

fn signal_ends_run() -> Outcome {
    sys::catch(libc::SIGUSR1);
    let mut m = spinner(1);
    let me = sys::tid();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let tid = AtomicI32::new(me);
            ms(30);
            stop(&tid, &done);
        });
        for _ in 0..10 {
            assert_eq!(m.cpus[0].run(), Err(libc::EINTR));
            assert_eq!(m.cpus[0].page().exit_reason, KVM_EXIT_INTR);
        }
        done.store(true, Ordering::Release);
    });
    assert!(m.ram.u64(kit::DATA) > 1000, "it has run");
    Ok(())
}

/// What the processor did to its control block when it refused an entry must not stay: a guest that runs then still has
/// to be interrupted.
fn signal_ends_run_after_a_refused_entry() -> Outcome {
    sys::catch(libc::SIGUSR1);
    let mut m = spinner(1);
    // Both L and D; and a root beyond all physical addresses, outside of long mode.
    type Spoil = fn(&mut kvm_sregs);
    let bad: [(&str, Spoil); 2] = [
        ("L and D", |s| s.cs.db = 1),
        ("CR3", |s| {
            s.cr0 &= !(1 << 31);
            s.efer = 0;
            s.cs.l = 0;
            s.cr3 = 1 << 60;
        }),
    ];
    for (what, spoil) in bad {
        let good = (m.cpu().fd.get_sregs()?, m.cpu().fd.get_regs()?);
        m.cpu().sregs(spoil);
        let spoilt = m.cpu().fd.get_sregs()?;
        match m.cpu().run() {
            Ok(Exit::FailEntry { .. }) => {}
            // A processor may not mind such a CR3 there; what the guest does then is not of interest.
            Ok(_) if what == "CR3" => continue,
            e => panic!("{what}: {e:x?}"),
        }
        assert_eq!(m.cpu().fd.get_sregs()?, spoilt, "{what}: nothing is lost");
        m.cpu().fd.set_sregs(&good.0)?;
        m.cpu().fd.set_regs(&good.1)?;
        let me = sys::tid();
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let tid = AtomicI32::new(me);
                ms(30);
                stop(&tid, &done);
            });
            for _ in 0..3 {
                assert_eq!(m.cpus[0].run(), Err(libc::EINTR), "{what}");
            }
            done.store(true, Ordering::Release);
        });
    }
    Ok(())
}

fn immediate_exit() -> Outcome {
    let mut m = spinner(1);
    m.cpu().page().immediate_exit = 1;
    for _ in 0..5 {
        assert_eq!(m.cpu().run(), Err(libc::EINTR));
    }
    assert_eq!(m.ram.u64(kit::DATA), 0, "not one instruction");
    Ok(())
}

fn immediate_exit_completes_io() -> Outcome {
    // The answer to a read is taken in although nothing runs.
    let mut m = Machine::new(Mode::Long, |a| {
        a.in_(eax, 0x50)?;
        a.mov(rbx, kit::MMIO)?;
        a.mov(ecx, dword_ptr(rbx))?;
        kit::done(a)
    })?;
    let c = m.cpu();
    c.run().expect("run");
    c.answer(&[1, 2, 3, 4]);
    c.page().immediate_exit = 1;
    assert_eq!(c.run(), Err(libc::EINTR));
    let r = c.fd.get_regs()?;
    assert_eq!((r.rax, r.rip), (0x0403_0201, CODE + 2));
    c.page().immediate_exit = 0;
    assert!(matches!(c.run(), Ok(Exit::Read { .. })));
    c.answer(&[5, 6, 7, 8]);
    c.page().immediate_exit = 1;
    assert_eq!(c.run(), Err(libc::EINTR));
    let r = c.fd.get_regs()?;
    assert_eq!(r.rcx, 0x0807_0605);
    Ok(())
}

fn signal_mask() -> Outcome {
    // SIGUSR2 is blocked in this thread, but not in KVM_RUN.
    sys::catch(libc::SIGUSR2);
    let mut m = spinner(1);
    #[repr(C)]
    struct Mask {
        len: u32,
        set: [u8; 8],
    }
    // SAFETY: whole structures of ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR2);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    assert_eq!(
        sys::with(
            m.cpu().raw(),
            sys::SET_SIGNAL_MASK,
            &mut Mask {
                len: 8,
                set: [0; 8]
            }
        ),
        Ok(0)
    );
    sys::kick(sys::tid(), libc::SIGUSR2);
    for _ in 0..3 {
        // It stays pending, as the thread's own mask holds it back.
        assert_eq!(m.cpu().run(), Err(libc::EINTR));
    }
    Ok(())
}

fn hlt_is_interrupted() -> Outcome {
    sys::catch(libc::SIGUSR1);
    let mut m = Machine::new(Mode::Long, |a| {
        a.hlt()?;
        kit::done(a)
    })?;
    let me = sys::tid();
    std::thread::scope(|s| {
        s.spawn(|| {
            ms(100);
            sys::kick(me, libc::SIGUSR1);
        });
        let before = sys::now();
        assert_eq!(m.cpus[0].run(), Err(libc::EINTR));
        assert!(sys::now() - before > 50_000_000, "it waited");
    });
    assert_eq!(m.cpu().fd.get_mp_state()?.mp_state, KVM_MP_STATE_HALTED);
    m.cpu().fd.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })?;
    m.cpu().results();
    Ok(())
}

fn slots_change_while_running() -> Outcome {
    sys::catch(libc::SIGUSR1);
    // The guest reads and writes a slot that comes, goes and moves; what is not memory is MMIO.
    let mut m = Machine::new(Mode::Long, |a| {
        let mut again = a.create_label();
        a.mov(ebx, 0x1000_0000)?;
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(dword_ptr(rbx + 0x1000), eax)?;
        a.mov(eax, dword_ptr(rbx + 0x2000))?;
        a.inc(ecx)?;
        a.cmp(ecx, 20_000)?;
        a.jb(again)?;
        kit::done(a)
    })?;
    let r = Ram::anon(0x1000_0000, 0x4000);
    m.slot(1, &r, 0).expect("slot");
    let (vm, cpus) = (&m.vm, &mut m.cpus);
    let region = |flags, at, len| {
        let mut s = kvm_userspace_memory_region {
            slot: 1,
            flags,
            guest_phys_addr: at,
            memory_size: len,
            userspace_addr: r.addr(),
        };
        sys::with(vm.as_raw_fd(), sys::SET_USER_MEMORY_REGION, &mut s)
    };
    std::thread::scope(|s| {
        let t = s.spawn(|| cpus[0].results_io().1.len());
        for i in 0.. {
            if t.is_finished() {
                break;
            }
            match i % 4 {
                0 => assert_eq!(region(KVM_MEM_LOG_DIRTY_PAGES, r.gpa, 0x4000), Ok(0)),
                1 => assert_eq!(region(0, r.gpa, 0x4000), Ok(0)),
                2 => assert_eq!(region(0, r.gpa, 0), Ok(0)),
                _ => assert_eq!(region(0, r.gpa, 0x4000), Ok(0)),
            }
        }
    });
    Ok(())
}

fn munmap_while_running() -> Outcome {
    // The backing goes for good while the guest writes to it.
    for _ in 0..10 {
        let mut m = Machine::new(Mode::Long, |a| {
            let mut again = a.create_label();
            kit::spins(a)?;
            a.set_label(&mut again)?;
            a.mov(ebx, 0x1000_0000)?;
            a.add(ebx, ecx)?;
            a.inc(dword_ptr(rbx))?;
            a.add(ecx, 0x1000)?;
            a.and(ecx, 0xf_ffff)?;
            a.jmp(again)
        })?;
        let r = Ram::anon(0x1000_0000, 0x10_0000);
        m.slot(1, &r, 0).expect("slot");
        std::thread::scope(|s| {
            let t = s.spawn(|| m.cpus[0].run());
            ms(10);
            drop(r);
            let e = t.join().expect("vCPU");
            assert!(
                matches!(e, Err(libc::EFAULT) | Ok(Exit::MemoryFault { .. })),
                "{e:x?}"
            );
        });
    }
    Ok(())
}

fn routes_change_while_signalled() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    let e = sys::Event::new();
    super::msi::routes(&m, &[super::msi::route(7, 0x62)]).expect("routes");
    let mut i = kvm_irqfd {
        fd: e.0 as u32,
        gsi: 7,
        ..Default::default()
    };
    assert_eq!(sys::with(m.raw(), sys::IRQFD, &mut i), Ok(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Acquire) {
                e.signal();
            }
        });
        for n in 0..200 {
            super::msi::routes(&m, &[super::msi::route(7, 0x40 + n % 100)]).expect("routes");
        }
        done.store(true, Ordering::Release);
    });
    Ok(())
}

fn irqfd_races_with_vm_close() -> Outcome {
    for _ in 0..20 {
        let m = Machine::new(Mode::Long, kit::done)?;
        let e = sys::Event::new();
        super::msi::routes(&m, &[super::msi::route(7, 0x62)]).expect("routes");
        let mut i = kvm_irqfd {
            fd: e.0 as u32,
            gsi: 7,
            ..Default::default()
        };
        assert_eq!(sys::with(m.raw(), sys::IRQFD, &mut i), Ok(0));
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    e.signal();
                }
            });
            ms(2);
            drop(m);
            done.store(true, Ordering::Release);
        });
    }
    Ok(())
}

fn vcpus_created_while_running() -> Outcome {
    sys::catch(libc::SIGUSR1);
    let m = spinner(1);
    let fd = m.cpus[0].raw();
    let (tid, done) = (AtomicI32::new(0), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            tid.store(sys::tid(), Ordering::Release);
            assert_eq!(sys::call(fd, sys::RUN, 0), Err(libc::EINTR));
            done.store(true, Ordering::Release);
        });
        ms(10);
        for i in 1..20 {
            let c = m.vm.create_vcpu(i).expect("KVM_CREATE_VCPU");
            c.get_regs().expect("KVM_GET_REGS");
        }
        stop(&tid, &done);
    });
    Ok(())
}

/// Kills a process whose `cpus` vCPUs spin.
fn kill_one(cpus: usize) {
    let mut pipe = [0; 2];
    // SAFETY: two descriptors of ours.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: the child runs vCPUs until it is killed.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let m = spinner(cpus);
        std::thread::scope(|s| {
            for c in &m.cpus {
                let fd = c.raw();
                s.spawn(move || sys::call(fd, sys::RUN, 0));
            }
            while m.ram.u64(kit::DATA) < 1000 {
                ms(1);
            }
            // SAFETY: one byte of ours.
            unsafe { libc::write(pipe[1], c"x".as_ptr().cast(), 1) };
        });
        std::process::exit(1);
    }
    let mut b = [0u8; 1];
    let mut status = 0;
    // SAFETY: one byte of ours, and our own child.
    unsafe {
        libc::read(pipe[0], b.as_mut_ptr().cast(), 1);
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, &mut status, 0);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
    }
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
}

fn killed_while_running() -> Outcome {
    for _ in 0..10 {
        kill_one(1);
    }
    Machine::new(Mode::Long, kit::done)?.cpu().results();
    Ok(())
}

fn killed_with_many_vcpus() -> Outcome {
    for _ in 0..4 {
        kill_one(8);
    }
    Machine::new(Mode::Long, kit::done)?.cpu().results();
    Ok(())
}

fn thread_exits_while_others_run() -> Outcome {
    sys::catch(libc::SIGUSR1);
    // A vCPU goes from thread to thread.
    let mut m = Machine::new(Mode::Long, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.movd(xmm3, ecx)?;
        a.out(0x50, al)?;
        a.movd(edx, xmm3)?;
        a.add(ebx, edx)?;
        a.inc(ecx)?;
        a.jmp(again)
    })?;
    for _ in 0..30 {
        std::thread::scope(|s| {
            s.spawn(|| m.cpus[0].run().expect("run"))
                .join()
                .expect("thread")
        });
    }
    assert_eq!(m.cpu().fd.get_regs()?.rbx, (0..29).sum::<u64>());
    Ok(())
}

fn descriptors_closed_while_running() -> Outcome {
    sys::catch(libc::SIGUSR1);
    // The descriptors go while KVM_RUN is in; it goes on until a signal comes.
    for first in 0..3 {
        let e = in_child(|| {
            let m = spinner(1);
            let fds = [m.kvm.as_raw_fd(), m.raw(), m.cpus[0].raw()];
            let (tid, done) = (AtomicI32::new(0), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    tid.store(sys::tid(), Ordering::Release);
                    let r = sys::call(fds[2], sys::RUN, 0);
                    assert_eq!(r, Err(libc::EINTR));
                    done.store(true, Ordering::Release);
                });
                while m.ram.u64(kit::DATA) < 1000 {
                    ms(1);
                }
                for i in 0..3 {
                    // SAFETY: the child ends without using them again.
                    unsafe { libc::close(fds[(first + i) % 3]) };
                }
                let before = m.ram.u64(kit::DATA);
                while m.ram.u64(kit::DATA) == before {
                    ms(1);
                }
                stop(&tid, &done);
            });
            std::mem::forget(m);
            0
        });
        assert_eq!(e, 0, "{first}");
    }
    Ok(())
}

fn exec_while_running() -> Outcome {
    // The address space goes with another thread's exec.
    for _ in 0..5 {
        // SAFETY: the child runs a vCPU and another program.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let m = spinner(1);
            let fd = m.cpus[0].raw();
            std::thread::scope(|s| {
                s.spawn(move || sys::call(fd, sys::RUN, 0));
                while m.ram.u64(kit::DATA) < 1000 {
                    ms(1);
                }
                let args = [c"true".as_ptr(), std::ptr::null()];
                // SAFETY: terminated strings and list.
                unsafe { libc::execvp(args[0], args.as_ptr()) };
            });
            std::process::exit(9);
        }
        let mut status = 0;
        // SAFETY: our own child.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0);
    }
    Ok(())
}

fn pin(cpu: usize) {
    // SAFETY: a whole set of ours.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

fn migrates_between_cpus() -> Outcome {
    let cpus = &rkvm_l1::env().cpus;
    if cpus.len() < 2 {
        return skip("two processors");
    }
    let mut m = Machine::new(Mode::Long, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(qword_ptr(kit::DATA))?;
        a.movq(xmm4, rcx)?;
        a.out(0x50, al)?;
        a.movq(rdx, xmm4)?;
        a.add(rbx, rdx)?;
        a.inc(rcx)?;
        a.jmp(again)
    })?;
    for i in 0..100 {
        pin(cpus[i % 2]);
        m.cpu().run().expect("run");
    }
    assert_eq!(m.cpu().fd.get_regs()?.rbx, (0..99).sum::<u64>());
    Ok(())
}

fn cpu_hotplug() -> Outcome {
    sys::catch(libc::SIGUSR1);
    let path = "/sys/devices/system/cpu/cpu1/online";
    if std::fs::metadata(path).is_err() {
        return skip("a processor that can be taken away");
    }
    if !rkvm_l1::env().rkvm {
        // In-tree KVM patches kernel code for its preemption notifiers; in TCG the processor that comes back trips over that.
        return skip("a module that does not patch the kernel");
    }
    let m = spinner(2);
    let (tids, done) = ([AtomicI32::new(0), AtomicI32::new(0)], AtomicU32::new(0));
    std::thread::scope(|s| {
        for (i, c) in m.cpus.iter().enumerate() {
            let (fd, tid, done) = (c.raw(), &tids[i], &done);
            s.spawn(move || {
                tid.store(sys::tid(), Ordering::Release);
                assert_eq!(sys::call(fd, sys::RUN, 0), Err(libc::EINTR));
                done.fetch_add(1, Ordering::AcqRel);
            });
        }
        for _ in 0..3 {
            ms(30);
            std::fs::write(path, "0").expect("offline");
            let before = m.ram.u64(kit::DATA);
            ms(50);
            assert_ne!(
                m.ram.u64(kit::DATA),
                before,
                "it runs on the processor that is left"
            );
            // A VM can be made while one processor is away.
            drop(Machine::with(Mode::Long, Irqchip::Split, 1));
            std::fs::write(path, "1").expect("online");
        }
        while done.load(Ordering::Acquire) < 2 {
            for t in &tids {
                sys::kick(t.load(Ordering::Acquire), libc::SIGUSR1);
            }
            ms(1);
        }
    });
    // The processor that came back can run guests.
    for &cpu in &rkvm_l1::env().cpus {
        pin(cpu);
        Machine::new(Mode::Long, kit::done)?.cpu().results();
    }
    Ok(())
}

fn vm_churn() -> Outcome {
    // First and last VM at the same time, over and over.
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..20 {
                    let k = rkvm_l1::kvm();
                    let vm = k.create_vm().expect("KVM_CREATE_VM");
                    split(&vm).expect("split");
                    let c = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
                    c.get_sregs().expect("KVM_GET_SREGS");
                }
            });
        }
    });
    Ok(())
}
