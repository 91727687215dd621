package dag

import (
	"fmt"
	"strconv"
	"strings"
)

// signals are the names STOPSIGNAL accepts, with or without SIG in front and in any case; the real-time ones are SIGRTMIN,
// SIGRTMIN+1…+15, SIGRTMAX, SIGRTMAX-1…-14. The list is that of Linux, whatever the machine we run on.
const signals = " ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX "

// checkSignal accepts a signal by name or a number other than 0.
func checkSignal(s string) error {
	invalid := fmt.Errorf("invalid signal: %s", s)
	if n, err := strconv.Atoi(s); err == nil {
		if n == 0 {
			return invalid
		}
		return nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for prefix, limit := range map[string]int{"RTMIN+": 15, "RTMAX-": 14} {
		if digits, ok := strings.CutPrefix(name, prefix); ok {
			if n, err := strconv.Atoi(digits); err == nil && n >= 1 && n <= limit && digits[0] != '0' && digits[0] != '+' {
				return nil
			}
			return invalid
		}
	}
	if name == "" || strings.ContainsAny(name, " ") || !strings.Contains(signals, " "+name+" ") {
		return invalid
	}
	return nil
}
