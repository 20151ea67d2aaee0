package routing

// Priorities of FIB rules, relative to the first of a slot.
const (
	slotSize        = 500
	capturePriority = 10 // outbound rule i has capturePriority+i
)

type program struct{ rules []fibRule }

type fibRule struct{}

func compile(c Config, slot int) program { return program{} }
