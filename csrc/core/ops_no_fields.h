// For inclusions of ops.def that need the operations' names alone: define OP, then include this.
#define OUT(field)
#define INOUT(field)
#define IN(field)
#define OUT_OPT(field)
#define INOUT_OPT(field)
#define IN_OPT(field)
#define OUT_LIST(field)
#define INOUT_LIST(field)
#define IN_LIST(field)
#define F64(field)
#define I64(field)
#define END
