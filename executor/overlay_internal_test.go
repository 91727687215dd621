package executor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOverlayWays mounts 200 layers each way; the ways for older kernels are not reached otherwise. It needs root and no
// namespace, since nothing is attached.
func TestOverlayWays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	for _, way := range overlayWays {
		t.Run(way.name, func(t *testing.T) {
			dir := t.TempDir()
			o := Overlay{Upper: dir + "/upper", Work: dir + "/work"}
			for i := range 200 {
				lower := filepath.Join(dir, fmt.Sprintf("layer-with-a-name-as-long-as-a-digest-%064d", i))
				if err := os.Mkdir(lower, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(lower+"/top", []byte(fmt.Sprint(i)), 0o644); err != nil {
					t.Fatal(err)
				}
				o.Lower = append(o.Lower, lower)
			}
			for _, d := range []string{o.Upper, o.Work} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			fd, err := way.mount(o, unix.MOUNT_ATTR_NODEV)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			f, err := openInRoot(fd, "top", unix.O_RDONLY)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(f)
			buf := make([]byte, 8)
			if n, err := unix.Read(f, buf); err != nil || string(buf[:n]) != "199" {
				t.Errorf("%q, %v", buf[:n], err)
			}
			if err := unix.Mkdirat(fd, "made", 0o755); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(o.Upper + "/made"); err != nil {
				t.Error(err)
			}
			var fs unix.Statfs_t
			if err := unix.Fstatfs(fd, &fs); err != nil || fs.Flags&unix.ST_NODEV == 0 {
				t.Errorf("devices work: flags %x, %v", fs.Flags, err)
			}
		})
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), "layer-with-a-name") {
		t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
}
