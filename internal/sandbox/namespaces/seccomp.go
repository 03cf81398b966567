package namespaces

import (
	"runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// seccomp allows the system calls that programs need and refuses every other,
// those of kernels to come included. Only the machine's own kind of program may
// run: the old system calls of 32-bit ones would go past the checks of
// arguments. Names that an architecture or an older library does not know are
// left out by the engine.
func seccomp() *specs.LinuxSeccomp {
	denied, missing := uint(unix.EPERM), uint(unix.ENOSYS)
	return &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &denied,
		Architectures:   nativeArch[runtime.GOARCH],
		Syscalls: []specs.LinuxSyscall{
			{Names: strings.Fields(allowedCalls), Action: specs.ActAllow},
			// New namespaces, above all user namespaces, open kernel code that
			// the missing capabilities keep shut.
			{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
				{Index: 0, Value: newNamespaces, ValueTwo: 0, Op: specs.OpMaskedEqual},
			}},
			// Its flags lie in memory, where no filter sees them. C libraries
			// fall back to clone.
			{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &missing},
			// Plain Linux, with and without address space randomisation, and asking.
			firstArgument("personality", 0), firstArgument("personality", addrNoRandomize), firstArgument("personality", 0xffffffff),
			// Of the kernel's many protocols only what network rules see.
			firstArgument("socket", unix.AF_UNIX), firstArgument("socket", unix.AF_INET),
			firstArgument("socket", unix.AF_INET6), firstArgument("socket", unix.AF_NETLINK),
		},
	}
}

// nativeArch names the machine's own architecture for the engine.
var nativeArch = map[string][]specs.Arch{
	"amd64": {specs.ArchX86_64},
	"arm64": {specs.ArchAARCH64},
}

// addrNoRandomize is the personality that debuggers run programs with.
const addrNoRandomize = 0x0040000

// newNamespaces are the flags of clone(2) that make namespaces.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// firstArgument allows a system call if its first argument has this value.
func firstArgument(name string, value uint64) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
		{Index: 0, Value: value, Op: specs.OpEqualTo},
	}}
}

// allowedCalls are the system calls that are allowed whatever their arguments.
const allowedCalls = `
	accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto
	setsockopt shutdown socketpair

	access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate
	fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr
	fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lgetxattr link
	linkat listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat newfstatat
	open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
	removexattr removexattrat rename renameat renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statx
	symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice
	write writev

	epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 inotify_add_watch
	inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit pipe
	pipe2 poll ppoll pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime

	brk madvise map_shadow_stack memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock
	munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise remap_file_pages

	alarm arch_prctl capget capset chroot execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv
	futex_wake getcpu getegid geteuid getgid getgroups getitimer getpgid getpgrp getpid getppid getpriority getresgid
	getresuid getrlimit get_robust_list getrusage getsid gettid getuid ioprio_get ioprio_set kill landlock_add_rule
	landlock_create_ruleset landlock_restrict_self membarrier pause pidfd_open pidfd_send_signal prctl prlimit64
	process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
	rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
	sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
	sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp setfsgid setfsuid setgid
	setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit set_robust_list setsid
	set_tid_address setuid sigaltstack tgkill tkill vfork wait4 waitid

	clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep time timer_create timer_delete timer_getoverrun
	timer_gettime timer_settime times

	mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop
	semtimedop shmat shmctl shmdt shmget

	getrandom sysinfo uname
`
