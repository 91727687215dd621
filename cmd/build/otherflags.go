package main

import (
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"build/internal/build"
)

// This file holds the flags of docker's build commands that are known here without having an effect. None of them is
// ignored in silence: each is either noted in one line, because leaving it out changes nothing about the result, or an
// error, because leaving it out would.

// seenFlag is one of them on the command line.
type seenFlag struct {
	flag  *otherFlag
	value string
}

// verdict judges one use: a note for the user, or why the build cannot go on. Both empty means nothing to say.
type verdict func(value string) (note, refusal string)

type otherFlag struct {
	name, short string
	bare        string // the value when given without one; "" means a value is required
	judge       verdict
}

const notYet = "not supported yet"

func unsupported(string) (string, string) { return "", notYet }

// meaningless accepts any value of a flag that has no meaning here.
func meaningless(why string) verdict {
	return func(string) (string, string) { return "has no effect: " + why, "" }
}

// idle accepts a switch that has no meaning here, on or off.
func idle(why string) verdict {
	return func(value string) (string, string) {
		if _, err := strconv.ParseBool(value); err != nil {
			return "", "the choices are true and false"
		}
		return "has no effect: " + why, ""
	}
}

// onlyFalse accepts a switch that is turned off.
func onlyFalse(why string) verdict {
	return func(value string) (string, string) {
		if on, err := strconv.ParseBool(value); err == nil && !on {
			return "has no effect: " + why, ""
		}
		return "", notYet
	}
}

var otherFlags = []otherFlag{
	{name: "builder", judge: meaningless("there are no builders to choose from, every build runs by itself")},
	{name: "rm", bare: "true", judge: idle("no containers are left behind in any case")},
	{name: "force-rm", bare: "true", judge: idle("no containers are left behind in any case")},
	{name: "compress", bare: "true", judge: idle("the context is read in place")},
	contentTrust,
	{name: "debug", short: "D", bare: "true", judge: idle("there is no debug log; --progress=plain shows everything")},
	{name: "cache-from", judge: meaningless(notYet + "; the local cache is used")},
	{name: "cache-to", judge: meaningless(notYet + "; the local cache is kept")},
	{name: "provenance", judge: onlyFalse("no provenance is made")},
	{name: "sbom", judge: onlyFalse("no SBOM is made")},
	{name: "attest", judge: judgeAttest},
	{name: "policy", judge: unsupported},
	{name: "security-opt", judge: unsupported},
	{name: "squash", bare: "true", judge: judgeSwitch},
}

// judgeSwitch refuses a switch that is on.
func judgeSwitch(value string) (string, string) {
	if on, err := strconv.ParseBool(value); err == nil && !on {
		return "", ""
	}
	return "", notYet
}

// judgeAttest accepts the forms that turn an attestation off.
func judgeAttest(value string) (string, string) {
	fields, err := csv.NewReader(strings.NewReader(value)).Read()
	if err == nil {
		for _, f := range fields {
			if k, v, _ := strings.Cut(f, "="); k == "disabled" {
				if on, err := strconv.ParseBool(v); err == nil && on {
					return "has no effect: no attestations are made", ""
				}
			}
		}
	}
	return "", notYet
}

// defineOthers adds the flags; every use is appended to seen.
func defineOthers(fs *pflag.FlagSet, seen *[]seenFlag) {
	for i := range otherFlags {
		f := &otherFlags[i]
		usage := "not supported yet"
		if note, refusal := f.judge("false"); refusal == "" && note != "" {
			usage = "accepted for docker's sake; " + note
		}
		flag := fs.VarPF(&otherValue{flag: f, seen: seen}, f.name, f.short, usage)
		flag.NoOptDefVal = f.bare
		flag.Hidden = true
	}
}

// otherValue notes each use of a flag.
type otherValue struct {
	flag *otherFlag
	seen *[]seenFlag
}

func (v *otherValue) String() string { return "" }
func (v *otherValue) Type() string {
	if v.flag.bare != "" {
		return "bool"
	}
	return "value"
}

func (v *otherValue) Set(value string) error {
	*v.seen = append(*v.seen, seenFlag{v.flag, value})
	return nil
}

// judgeOthers tells the user about the flags without effect, each once, and refuses those that would have one.
func judgeOthers(seen []seenFlag, note func(string, ...any)) error {
	told := map[string]bool{}
	for _, s := range seen {
		say, refusal := s.flag.judge(s.value)
		typed := dashed(s.flag.name)
		if s.flag.bare == "" || s.value != s.flag.bare {
			typed += "=" + s.value
		}
		if refusal != "" {
			return &build.UsageError{Msg: fmt.Sprintf("flag %s: %s", typed, refusal)}
		}
		if say != "" && !told[s.flag.name] {
			told[s.flag.name] = true
			note("%s %s", typed, say)
		}
	}
	return nil
}

// contentTrust is also a flag of docker push.
var contentTrust = otherFlag{name: "disable-content-trust", bare: "true", judge: idle("content trust is not used; images are verified by digest")}
