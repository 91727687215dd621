// Command calls makes the system calls that tests of the supervisor need, without a C library between.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	args := os.Args[2:]
	switch os.Args[1] {
	case "owner": // FILE…
		for _, f := range args {
			var st syscall.Stat_t
			check(syscall.Lstat(f, &st))
			fmt.Printf("%d:%d %o\n", st.Uid, st.Gid, st.Mode)
		}
	case "chown": // UID GID FILE
		check(os.Lchown(args[2], number(args[0]), number(args[1])))
	case "ids":
		fmt.Println(syscall.Getuid(), syscall.Geteuid(), syscall.Getgid(), syscall.Getegid(), groups())
	case "become": // UID GID COMMAND…
		check(syscall.Setgroups(nil))
		check(syscall.Setgid(number(args[1])))
		check(syscall.Setuid(number(args[0])))
		check(syscall.Exec(args[2], args[2:], os.Environ()))
	case "seteuid": // UID, then back
		check(syscall.Setresuid(-1, number(args[0]), -1))
		fmt.Println(syscall.Getuid(), syscall.Geteuid(), syscall.Setresuid(-1, 5, -1))
		check(syscall.Setresuid(-1, 0, -1))
		fmt.Println(syscall.Getuid(), syscall.Geteuid())
	case "threads":
		threads(args)
	case "race":
		race(args[0], number(args[1]))
	case "storm":
		storm(args[0], number(args[1]))
	case "bench":
		bench(args[0], number(args[1]))
	case "create":
		create(args[0])
	default:
		check(fmt.Errorf("unknown command %s", os.Args[1]))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "calls:", err)
		os.Exit(1)
	}
}

func number(s string) int {
	n, err := strconv.ParseInt(s, 10, 64)
	check(err)
	return int(n)
}

func groups() []int {
	g, err := syscall.Getgroups()
	check(err)
	return g
}

// threads changes the user of one thread only and shows what others, and a child of either, have.
func threads(child []string) {
	const uid = 4242
	out := make(chan string)
	run := func() string {
		cmd := exec.Command(child[0], child[1:]...)
		b, err := cmd.Output() // forks on this thread
		check(err)
		return string(b)
	}
	runtime.LockOSThread()
	ready, done := make(chan bool), make(chan bool)
	go func() {
		runtime.LockOSThread()
		<-ready
		out <- fmt.Sprint("other ", syscall.Getuid(), " ", run())
		<-done
	}()
	if _, _, errno := syscall.RawSyscall(setresuid, uid, uid, uid); errno != 0 {
		check(errno)
	}
	fmt.Print("this ", syscall.Getuid(), " ", run())
	close(ready)
	fmt.Print(<-out)
	close(done)
}

// create makes files by all ways there are.
func create(dir string) {
	in := func(name string) string { return filepath.Join(dir, name) }
	check(os.WriteFile(in("open"), nil, 0o640))
	fd, err := syscall.Open(in("excl"), syscall.O_CREAT|syscall.O_EXCL|syscall.O_RDWR, 0o400)
	check(err)
	_, err = syscall.Write(fd, []byte("x"))
	check(err)
	_, err = syscall.Creat(in("creat"), 0o666)
	check(err)
	check(os.Symlink("target", in("dangling")))
	check(os.WriteFile(in("dangling"), []byte("through"), 0o600))
	check(os.Mkdir(in("dir"), 0o777))
	check(syscall.Mkfifo(in("fifo"), 0o600))
	path, err := syscall.BytePtrFromString(in("how"))
	check(err)
	how := struct{ flags, mode, resolve uint64 }{syscall.O_CREAT | syscall.O_WRONLY, 0o604, 0}
	const openat2 = 437
	atCWD := -100
	if _, _, errno := syscall.Syscall6(openat2, uintptr(atCWD), uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0); errno != 0 {
		check(errno)
	}
	tmp, err := syscall.Open(dir, 0o20000000|syscall.O_DIRECTORY|syscall.O_RDWR, 0o600)
	check(err)
	var st syscall.Stat_t
	check(syscall.Fstat(tmp, &st))
	fmt.Printf("unnamed %d:%d\n", st.Uid, st.Gid)
}

// race makes calls whose path another thread changes between a file of dir and ways out of it, while a third changes what the
// paths mean.
func race(dir string, rounds int) {
	check(os.MkdirAll(dir+"/d/e", 0o755))
	check(os.WriteFile(dir+"/d/f", nil, 0o644))
	inside := []byte(dir + "/d/f\x00")
	var buf [4096]byte
	copy(buf[:], inside)
	outs := [][]byte{
		[]byte("/../../../../../../tmp/canary/f\x00"), []byte("/proc/1/root/tmp/canary/f\x00"), []byte("/proc/self/root/../tmp/canary/f\x00"),
		[]byte(dir + "/d/../../../../../tmp/canary/f\x00"), []byte("/proc/self/cwd/../../../tmp/canary/f\x00"), inside,
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		for i := 0; !stop.Load(); i++ {
			copy(buf[:], outs[i%len(outs)])
		}
	}()
	go func() {
		defer wg.Done()
		for !stop.Load() {
			os.Rename(dir+"/d", dir+"/old")
			os.Symlink("../../../../../../../tmp/canary", dir+"/d")
			os.Remove(dir + "/d")
			os.Symlink("/proc/1/root/tmp/canary", dir+"/d")
			os.Remove(dir + "/d")
			os.Rename(dir+"/old", dir+"/d")
		}
	}()
	p := uintptr(unsafe.Pointer(&buf[0]))
	var st [512]byte
	atCWD := -100
	for i := range rounds {
		syscall.Syscall6(fchownat, uintptr(atCWD), p, uintptr(i%5000), 77, 0, 0)
		syscall.Syscall(mkdirat, uintptr(atCWD), p, 0o700)
		syscall.Syscall6(fstatat, uintptr(atCWD), p, uintptr(unsafe.Pointer(&st)), 0, 0, 0)
		if fd, _, errno := syscall.Syscall6(syscall.SYS_OPENAT, uintptr(atCWD), p, syscall.O_CREAT|syscall.O_WRONLY, 0o600, 0, 0); errno == 0 {
			syscall.Close(int(fd))
		}
	}
	stop.Store(true)
	wg.Wait()
	runtime.KeepAlive(&buf)
}

// storm has children make calls while signals interrupt and kill them.
func storm(dir string, children int) {
	if dir == "-" { // a child
		signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1)
		for i := 0; ; i++ {
			d := fmt.Sprintf("/tmp/storm-%d-%d", os.Getpid(), i)
			if err := os.Mkdir(d, 0o700); err != nil {
				fmt.Println("mkdir:", err)
				os.Exit(3)
			}
			os.Lchown(d, i, i)
			os.Lstat(d)
			syscall.Setresgid(-1, i, -1)
			os.Remove(d)
		}
	}
	signal.Ignore(syscall.SIGUSR1) // so do the children until they say otherwise
	var wg sync.WaitGroup
	for n := range children {
		cmd := exec.Command("/proc/self/exe", "storm", "-", "0")
		cmd.Stdout = os.Stdout
		check(cmd.Start())
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 200 {
				cmd.Process.Signal(syscall.SIGUSR1)
				time.Sleep(time.Duration(n%7) * 100 * time.Microsecond)
			}
			cmd.Process.Kill()
			err := cmd.Wait()
			if ws, ok := err.(*exec.ExitError); !ok || ws.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				check(fmt.Errorf("a child ended by itself: %v", err))
			}
		}()
	}
	wg.Wait()
	fmt.Println("quiet")
}

// bench prints nanoseconds per call: of the best of many short runs, because machines are busy.
func bench(dir string, rounds int) {
	f := dir + "/bench"
	check(os.WriteFile(f, nil, 0o644))
	var st syscall.Stat_t
	fd, err := syscall.Open(f, syscall.O_RDONLY, 0)
	check(err)
	for _, b := range []struct {
		name string
		call func(int)
	}{
		{"getppid", func(int) { syscall.RawSyscall(syscall.SYS_GETPPID, 0, 0, 0) }},
		{"open+close", func(int) {
			if fd, err := syscall.Open(f, syscall.O_RDONLY, 0); err == nil {
				syscall.Close(fd)
			}
		}},
		{"getuid", func(int) { syscall.RawSyscall(syscall.SYS_GETUID, 0, 0, 0) }},
		{"fstat", func(int) { syscall.Fstat(fd, &st) }},
		{"stat", func(int) { syscall.Stat(f, &st) }},
		{"chown", func(i int) { os.Chown(f, 0, 0) }},
		{"chown other", func(i int) { os.Chown(f, i, i) }},
		{"stat recorded", func(int) { syscall.Stat(f, &st) }},
		{"mkdir+rmdir", func(int) { syscall.Mkdir(f+"d", 0o700); syscall.Rmdir(f + "d") }},
	} {
		const batch = 100
		best := time.Duration(1 << 62)
		for range rounds / batch {
			start := time.Now()
			for i := range batch {
				b.call(i)
			}
			best = min(best, time.Since(start))
		}
		fmt.Printf("%-14s %6d ns\n", b.name, best.Nanoseconds()/batch)
	}
}
