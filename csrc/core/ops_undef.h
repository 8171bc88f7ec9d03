// Undoes the macros of one inclusion of ops.def.
#undef OP
#undef OUT
#undef INOUT
#undef IN
#undef OUT_OPT
#undef INOUT_OPT
#undef IN_OPT
#undef OUT_LIST
#undef INOUT_LIST
#undef IN_LIST
#undef F64
#undef I64
#undef END
#ifdef QT_TENSOR_FIELD
#undef QT_TENSOR_FIELD
#undef QT_LIST_FIELD
#endif
