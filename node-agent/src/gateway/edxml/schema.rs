//! The elements of the edXML header as data: their order, which repeat, and how long Decree 30/2020 lets them be.
//!
//! Reading uses it to tell known from unknown and lists from single values; writing follows its order.

pub(super) const NAMESPACE: &str = "http://www.mic.gov.vn/TBT/QCVN_102_2016";
/// Namespaces of earlier editions that files still carry.
pub(super) const LEGACY_NAMESPACES: [&str; 2] = ["http://www.e-doc.vn/Schema/", "http://www.go.vn/eDoc"];
pub(super) const SIGNATURE_NAMESPACE: &str = "http://www.w3.org/2000/09/xmldsig#";

/// Key of the list of traces beside the fields of MessageHeader, and of what else stands in edXMLHeader.
pub(super) const TRACES: &str = "TraceHeaderList";
pub(super) const HEADER: &str = "edXMLHeader";
/// Key of the flag that admission looks at; not an edXML field.
pub(super) const SECRET: &str = "secret";

/// One known element.
#[derive(Debug)]
pub(super) struct Field {
    pub name: &'static str,
    /// Whether it may stand more than once; it is a JSON array then, also when it stands once.
    pub many: bool,
    /// The longest text, in characters (Decree 30/2020, appendix VI); `None` where it says nothing.
    pub max_chars: Option<usize>,
    /// Empty for an element that holds text.
    pub fields: &'static [Field],
}

const fn text(name: &'static str) -> Field {
    Field { name, many: false, max_chars: None, fields: &[] }
}

const fn short(name: &'static str, max_chars: usize) -> Field {
    Field { name, many: false, max_chars: Some(max_chars), fields: &[] }
}

const fn texts(name: &'static str) -> Field {
    Field { name, many: true, max_chars: None, fields: &[] }
}

const fn group(name: &'static str, fields: &'static [Field]) -> Field {
    Field { name, many: false, max_chars: None, fields }
}

const fn groups(name: &'static str, fields: &'static [Field]) -> Field {
    Field { name, many: true, max_chars: None, fields }
}

pub(super) fn find<'f>(fields: &'f [Field], name: &str) -> Option<&'f Field> {
    fields.iter().find(|field| field.name == name)
}

const ORGAN: &[Field] = &[
    text("OrganId"),
    short("OrganizationInCharge", 200),
    short("OrganName", 200),
    text("OrganAdd"),
    text("Email"),
    text("Telephone"),
    text("Fax"),
    text("Website"),
];

const STAFF: &[Field] =
    &[text("Department"), text("Staff"), text("Email"), text("Mobile"), text("DepartmentId"), text("StaffId")];

const OTHER_INFO: &[Field] = &[
    short("Priority", 1),
    text("SphereOfPromulgation"),
    text("TyperNotation"),
    short("PromulgationAmount", 3),
    short("PageAmount", 3),
    text("Direction"),
    group("Appendixes", &[texts("Appendix")]),
    text("ReplyFors"),
    text("ReferenceCodes"),
];

/// MessageHeader of a document and of a status alike: a status has From, ResponseFor and the last four.
pub(super) const MESSAGE_HEADER: &[Field] = &[
    group("From", ORGAN),
    groups("To", ORGAN),
    text("DocumentId"),
    group("Code", &[short("CodeNumber", 11), short("CodeNotation", 30)]),
    group("PromulgationInfo", &[text("Place"), text("PromulgationDate")]),
    group("DocumentType", &[text("Type"), text("TypeDetail"), short("TypeName", 100)]),
    short("Subject", 500),
    text("Content"),
    group("SignerInfo", &[text("Competence"), short("Position", 100), short("FullName", 50)]),
    text("DueDate"),
    group("OtherInfo", OTHER_INFO),
    groups("ResponseFor", &[text("OrganId"), text("Code"), text("PromulgationDate"), text("DocumentId")]),
    text("SteeringType"),
    group("ToPlaces", &[texts("Place")]),
    text("ResponseForTask"),
    text("ApplicationType"),
    group("StaffInfo", STAFF),
    text("StatusCode"),
    text("Description"),
    text("Timestamp"),
];

const BUSSINESS: &[Field] = &[
    text("DocumentId"),
    text("BussinessDocType"),
    text("BussinessDocReason"),
    text("Paper"),
    group(
        "BussinessDocumentInfo",
        &[
            text("DocumentInfo"),
            text("DocumentReceiver"),
            group("ReceiverList", &[groups("Receiver", &[text("OrganId"), text("ReceiverType")])]),
        ],
    ),
    group(
        "ReplacementInfoList",
        &[groups("ReplacementInfo", &[text("DocumentId"), group("OrganIdList", &[texts("OrganId")])])],
    ),
    group("StaffInfo", STAFF),
];

pub(super) const TRACE_HEADER_LIST: &[Field] =
    &[groups("TraceHeader", &[text("OrganId"), text("Timestamp")]), group("Bussiness", BUSSINESS)];

/// Document types by their number in the edXML list, as far as the list is known to be in use.
pub(super) const TYPE_NAMES: &[(&str, &str)] = &[
    ("1", "Nghị quyết"),
    ("2", "Quyết định"),
    ("3", "Chỉ thị"),
    ("4", "Quy chế"),
    ("5", "Quy định"),
    ("6", "Thông cáo"),
    ("7", "Thông báo"),
    ("8", "Hướng dẫn"),
    ("9", "Chương trình"),
    ("18", "Công văn"),
    ("19", "Công điện"),
    ("20", "Bản ghi nhớ"),
    ("21", "Bản cam kết"),
    ("22", "Bản thỏa thuận"),
    ("23", "Giấy chứng nhận"),
    ("24", "Giấy ủy quyền"),
    ("25", "Giấy mời"),
    ("26", "Giấy giới thiệu"),
];
